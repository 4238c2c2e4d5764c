#include "command_line/unknown_argument.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::command_line {
namespace {

// The fewest letters to insert, remove, replace or swap with their neighbour
// that make `b` of `a`.
size_t Distance(absl::string_view a, absl::string_view b) {
  // distance[i][j]: between the first i and the first j letters.
  std::vector<std::vector<size_t>> distance(a.size() + 1,
                                            std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) distance[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) distance[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced =
          distance[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      distance[i][j] =
          std::min({replaced, distance[i - 1][j] + 1, distance[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        distance[i][j] = std::min(distance[i][j], distance[i - 2][j - 2] + 1);
      }
    }
  }
  return distance[a.size()][b.size()];
}

// The name that `typed` is a slip of, or the only one that it begins; empty if
// there is none.
std::string Nearest(const std::string& typed,
                    const std::vector<std::string>& names) {
  // Longer than any name, and what is typed may be of any length.
  if (typed.size() > 64) return "";
  std::string nearest;
  // A third of the letters wrong is no slip any more.
  size_t least = typed.size() / 3 + 1;
  for (const std::string& name : names) {
    const size_t distance = Distance(typed, name);
    if (distance < least) {
      least = distance;
      nearest = name;
    }
  }
  if (!nearest.empty() || typed.size() < 3) return nearest;
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, typed)) continue;
    if (!nearest.empty()) return "";
    nearest = name;
  }
  return nearest;
}

std::vector<std::string> FlagNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  }
  return names;
}

std::vector<const CLI::App*> Commands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

bool Has(const CLI::App& app, const std::string& flag) {
  return app.get_option_no_throw("--" + flag) != nullptr;
}

std::string AboutFlag(const CLI::App& app, absl::string_view argument,
                      const OtherNames& other_names) {
  const std::string shown(argument.substr(0, argument.find('=')));
  // As flags are written here: "-listen", "--MAX_BATCH".
  std::string name =
      absl::AsciiStrToLower(shown.substr(shown.find_first_not_of('-')));
  name = absl::StrReplaceAll(name, {{"_", "-"}});
  for (const CLI::App* command : Commands(app)) {
    if (!Has(*command, name)) continue;
    return absl::StrCat(shown, ": this flag stands after a command, as in ",
                        app.get_name(), " ", command->get_name(), " --", name);
  }
  const auto other = other_names.find(name);
  std::string meant;
  if (other != other_names.end() && Has(app, other->second)) {
    meant = other->second;
  } else {
    meant = Nearest(name, FlagNames(app));
  }
  return absl::StrCat(
      shown, ": no such flag",
      meant.empty() ? "" : absl::StrCat(", did you mean --", meant, "?"));
}

std::string AboutWord(const CLI::App& app, const std::string& argument) {
  std::vector<std::string> names;
  for (const CLI::App* command : Commands(app)) {
    names.push_back(command->get_name());
  }
  const std::string meant = Nearest(argument, names);
  if (!meant.empty()) {
    return absl::StrCat(argument, ": no such command, did you mean ", meant,
                        "?");
  }
  return absl::StrCat("got '", argument, "', wanted ",
                      names.empty() ? "flags only" : "a command or a flag");
}

}  // namespace

std::optional<std::string> UnknownArgument(const CLI::App& app,
                                           const OtherNames& other_names) {
  for (const std::string& argument : app.remaining()) {
    if (argument.find_first_not_of('-') == std::string::npos) continue;
    return argument.front() == '-' ? AboutFlag(app, argument, other_names)
                                   : AboutWord(app, argument);
  }
  for (const CLI::App* command : app.get_subcommands()) {
    if (auto about = UnknownArgument(*command, other_names)) return about;
  }
  return std::nullopt;
}

std::optional<std::string> EmptyValue(int argc, const char* const* argv,
                                      absl::string_view but) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::StartsWith(argument, "--") &&
        absl::ConsumeSuffix(&argument, "=") && argument != but) {
      return absl::StrCat(argument, ": got no value after '='");
    }
  }
  return std::nullopt;
}

}  // namespace attention::command_line
