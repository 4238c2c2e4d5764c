#include "command_line/completion.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace attention::command_line {
namespace {

// A flag, or the argument of a command, as the scripts need it.
struct Argument {
  // "--causal"; empty for what has no dashes.
  std::string flag;
  std::string description;
  bool takes_value;
  bool repeats;
  std::string value_name;
  // What the value can be; empty: anything.
  std::vector<std::string> words;
  bool is_file;
};

struct Command {
  // The words of it, "session/create"; empty: the program itself.
  std::string path;
  // The last of them.
  std::string name;
  std::string description;
  std::vector<Argument> arguments;
  std::vector<Command> commands;
};

Argument Describe(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  Argument argument{
      .flag =
          option.get_lnames().empty() ? "" : "--" + option.get_lnames().front(),
      .description = option.get_description(),
      .takes_value = option.get_items_expected_max() > 0,
      .repeats = option.get_items_expected_max() > 1,
      // What stands behind is how CLI11 checks it: "N:INT in [1 - 9]".
      .value_name = type.substr(0, type.find(':')),
      .words = {},
      .is_file = type == "FILE" || type == "TENSOR"};
  if (absl::StrContains(type, '|')) {
    argument.words = absl::StrSplit(type, '|');
    argument.value_name = option.get_single_name();
  }
  return argument;
}

// With all commands below it.
Command Describe(const CLI::App& app, const std::string& path,
                 const std::string& name) {
  Command described{path, name, app.get_description(), {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    described.arguments.push_back(Describe(*option));
  }
  for (const CLI::App* command :
       app.get_subcommands([](const CLI::App*) { return true; })) {
    described.commands.push_back(Describe(
        *command,
        absl::StrCat(path, path.empty() ? "" : "/", command->get_name()),
        command->get_name()));
  }
  return described;
}

// Calls `function` with a command and all below it.
template <typename Function>
void ForEach(const Command& command, const Function& function) {
  function(command);
  for (const Command& below : command.commands) ForEach(below, function);
}

std::string NamesOf(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  names.reserve(commands.size());
  for (const Command& command : commands) names.push_back(command.name);
  return absl::StrJoin(names, " ");
}

// Text between the single quotes of a shell.
std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

// Bash. In the script `command` is the path of the command that stands before
// the cursor, `flag` the one whose value does, and `current` what has been
// typed of the word to complete. Bash gives --flag=value as three words, but as
// one where COMP_WORDBREAKS has no "=": then the replies need the flag as
// `prefix`.
constexpr char kBashScript[] =
    R"(# Completion of $program for bash, made by: $program completion bash
_$program() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  local command= flag= prefix= flags= words= file= word
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $word == -* ]] && continue
    case $command/$word in
      $commands) command=${command:+$command/}$word ;;
      *) break ;;
    esac
  done
  case $command in
$flags  esac
  if [[ $current == --*=* ]]; then
    flag=${current%%=*} prefix=$flag= current=${current#*=}
  elif [[ $current == = ]]; then
    flag=$previous current=
  elif [[ $previous == = ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ " $flags " == *" $previous= "* ]]; then
    flag=$previous
  fi
  [[ -n $flag ]] && words=
  case $command$flag in
$values  esac
  if [[ -n $file ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -f -- "$current")
  elif [[ -n $flag ]]; then
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$words" -- "$current")
  else
    mapfile -t COMPREPLY < <(compgen -W "$words $flags" -- "$current")
    if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
  fi
}
complete -F _$program $program
)";

std::string BashFlags(const Command& command) {
  std::vector<std::string> flags;
  // A command's own argument is completed where no flag is.
  std::string words = NamesOf(command.commands);
  for (const Argument& argument : command.arguments) {
    if (argument.flag.empty()) {
      words = absl::StrJoin(argument.words, " ");
    } else {
      flags.push_back(
          absl::StrCat(argument.flag, argument.takes_value ? "=" : ""));
    }
  }
  return absl::StrCat("    ", Quoted(command.path),
                      ") flags=", Quoted(absl::StrJoin(flags, " ")),
                      " words=", Quoted(words), " ;;\n");
}

std::string BashValues(const Command& command) {
  std::string cases;
  for (const Argument& argument : command.arguments) {
    if (argument.flag.empty()) continue;
    const std::string place = absl::StrCat("    ", command.path, argument.flag);
    if (argument.is_file) {
      absl::StrAppend(&cases, place, ") file=yes ;;\n");
    } else if (!argument.words.empty()) {
      absl::StrAppend(&cases, place,
                      ") words=", Quoted(absl::StrJoin(argument.words, " ")),
                      " ;;\n");
    }
  }
  return cases;
}

std::string BashScript(const Command& program) {
  std::vector<std::string> paths;
  std::string flags;
  std::string values;
  ForEach(program, [&](const Command& command) {
    flags += BashFlags(command);
    values += BashValues(command);
    for (const Command& below : command.commands) {
      paths.push_back(absl::StrCat(command.path, "/", below.name));
    }
  });
  // Whole lines first: the script has a variable $flags too.
  return absl::StrReplaceAll(kBashScript,
                             {{"$program", program.name},
                              {"$commands)", absl::StrJoin(paths, "|") + ")"},
                              {"$flags  esac", flags + "  esac"},
                              {"$values", values}});
}

// Zsh, whose _arguments does the work. From the command on it takes the words
// as a command line of their own, with the command in the program's place. A
// command that has commands gets a function of its own, like the program's.
constexpr char kZshFunction[] = R"($function() {
  local curcontext=$curcontext state line result=1
  typeset -A opt_args
  local -a commands=(
$commands  )
  _arguments -C \
$flags    '1:command:->command' \
    '*::argument:->argument' && result=0
  case $state in
    command) _describe command commands && result=0 ;;
    argument)
      case $line[1] in
$cases      esac ;;
  esac
  return result
}
)";

constexpr char kZshScript[] = R"(#compdef $program
# Completion of $program for zsh, made by: $program completion zsh
$functions# Called by completion itself when it has just loaded the file.
if [[ $funcstack[1] == _$program ]]; then
  _$program "$@"
else
  compdef _$program $program
fi
)";

// "[" and so on mean something in a specification of _arguments.
std::string ZshText(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"\\", "\\\\"}, {":", "\\:"}, {"[", "\\["}, {"]", "\\]"}});
}

std::string ZshSpecification(const Argument& argument) {
  std::string spec;
  if (argument.flag.empty()) {
    spec = "1";
  } else {
    spec = absl::StrCat(argument.repeats ? "*" : "", argument.flag,
                        argument.takes_value ? "=" : "", "[",
                        ZshText(argument.description), "]");
  }
  if (argument.takes_value) {
    absl::StrAppend(&spec, ":", ZshText(argument.value_name), ":");
    if (argument.is_file) spec += "_files";
    if (!argument.words.empty()) {
      absl::StrAppend(&spec, "(", absl::StrJoin(argument.words, " "), ")");
    }
  }
  return Quoted(spec);
}

std::string ZshSpecifications(const Command& command, const std::string& indent,
                              const std::string& separator) {
  std::string specifications;
  for (const Argument& argument : command.arguments) {
    absl::StrAppend(&specifications, indent, ZshSpecification(argument),
                    separator);
  }
  return specifications;
}

std::string ZshName(const std::string& program, const Command& command) {
  return absl::StrCat("_", program, command.path.empty() ? "" : "_",
                      absl::StrReplaceAll(command.path, {{"/", "_"}}));
}

// The functions of a command and of those below it that have commands.
std::string ZshFunctions(const std::string& program, const Command& command) {
  std::string names;
  std::string cases;
  std::string functions;
  for (const Command& below : command.commands) {
    absl::StrAppend(
        &names, "    ",
        Quoted(absl::StrCat(below.name, ":", ZshText(below.description))),
        "\n");
    absl::StrAppend(&cases, "        ", below.name, ") ");
    if (below.commands.empty()) {
      absl::StrAppend(&cases, "_arguments",
                      ZshSpecifications(below, " \\\n          ", ""));
    } else {
      functions += ZshFunctions(program, below);
      cases += ZshName(program, below);
    }
    absl::StrAppend(&cases, " && result=0 ;;\n");
  }
  return functions +
         absl::StrReplaceAll(
             kZshFunction,
             {{"$function", ZshName(program, command)},
              {"$commands", names},
              {"$flags", ZshSpecifications(command, "    ", " \\\n")},
              {"$cases", cases}});
}

std::string ZshScript(const Command& program) {
  return absl::StrReplaceAll(
      kZshScript, {{"$program", program.name},
                   {"$functions", ZshFunctions(program.name, program)}});
}

}  // namespace

CLI::App* AddCompletionCommand(CLI::App& app, std::string& shell) {
  CLI::App* command = app.add_subcommand(
      "completion", "Print the script that completes flags in a shell");
  command->add_option("SHELL", shell, "Whose script: bash or zsh")
      ->type_name("bash|zsh")
      ->required()
      ->check([](const std::string& text) {
        return text == "bash" || text == "zsh"
                   ? std::string()
                   : absl::StrCat("got '", text, "', wanted bash or zsh");
      });
  command->footer(absl::StrCat("For this shell alone: source <(",
                               app.get_name(),
                               " completion bash)\nFor good: install it as "
                               "bash-completion/completions/",
                               app.get_name(), " or zsh/site-functions/_",
                               app.get_name(), " under /usr/share."));
  return command;
}

std::string CompletionScript(const CLI::App& app, const std::string& shell) {
  const Command program = Describe(app, "", app.get_name());
  return shell == "zsh" ? ZshScript(program) : BashScript(program);
}

}  // namespace attention::command_line
