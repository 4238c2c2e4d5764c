// The drawing half of explain.h.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/explain.h"

namespace attention::cli {
namespace {

// What fits 80 columns and a screen.
constexpr int64_t kMaxColumns = 6;
constexpr int64_t kMaxRows = 12;
constexpr int64_t kMapColumns = 64;

// Stands in a list of indices for those left out.
constexpr int64_t kGap = -1;

// 0 to count - 1, cut in the middle if more than `most`.
std::vector<int64_t> Shown(int64_t count, int64_t most) {
  std::vector<int64_t> shown;
  shown.reserve(std::min(count, most + 1));
  const int64_t tail = count > most ? most / 3 : 0;
  const int64_t head = count > most ? most - tail : count;
  for (int64_t i = 0; i < head; ++i) shown.push_back(i);
  if (count > most) shown.push_back(kGap);
  for (int64_t i = count - tail; i < count; ++i) shown.push_back(i);
  return shown;
}

std::string Number(double value, bool wide) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  return wide ? absl::StrFormat("%.6g", value) : absl::StrFormat("%.6f", value);
}

// Lines of cells, each column as wide as its widest cell; right-aligned.
std::string Aligned(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths;
  for (const auto& line : lines) {
    widths.resize(std::max(widths.size(), line.size()));
    for (size_t i = 0; i < line.size(); ++i) {
      widths[i] = std::max(widths[i], line[i].size());
    }
  }
  std::string out;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      absl::StrAppend(&out, "  ", std::string(widths[i] - line[i].size(), ' '),
                      line[i]);
    }
    out += '\n';
  }
  return out;
}

std::string Label(const char* name, int64_t index) {
  return index == kGap ? "..." : absl::StrCat(name, " ", index);
}

std::string Table(const Matrix& matrix, const char* column_name) {
  // Six decimals line up and suffice, unless numbers are too large for them.
  const bool wide = std::any_of(
      matrix.values.begin(), matrix.values.end(),
      [](double x) { return std::isfinite(x) && std::fabs(x) >= 1e5; });
  const std::vector<int64_t> columns = Shown(matrix.columns, kMaxColumns);
  std::vector<std::vector<std::string>> lines(1, {""});
  for (const int64_t column : columns) {
    lines[0].push_back(Label(column_name, column));
  }
  for (const int64_t row : Shown(matrix.rows, kMaxRows)) {
    lines.push_back({Label("query", row)});
    for (const int64_t column : columns) {
      const bool gap = row == kGap || column == kGap;
      lines.back().push_back(gap ? "..."
                                 : Number(matrix.at(row, column), wide));
    }
  }
  return Aligned(lines);
}

// Keys that one character of the map stands for.
int64_t KeysEach(int64_t keys) {
  return std::max<int64_t>(1, (keys + kMapColumns - 1) / kMapColumns);
}

// One row of the map: the weight each character stands for is the largest among
// its keys, its shade the share of the row's largest.
std::string ShadedRow(const Matrix& weights, int64_t row, bool ascii) {
  static constexpr const char* kBlocks[] = {" ", "░", "▒", "▓", "█"};
  static constexpr const char* kAscii[] = {" ", ".", "+", "*", "#"};
  const int64_t keys = weights.columns;
  // Two characters a key look square where there is room.
  const int width = keys * 2 <= kMapColumns ? 2 : 1;
  const int64_t keys_each = KeysEach(keys);
  double largest = 0;
  for (int64_t key = 0; key < keys; ++key) {
    largest = std::max(largest, weights.at(row, key));
  }
  std::string shades;
  for (int64_t begin = 0; begin < keys; begin += keys_each) {
    double weight = 0;
    for (int64_t key = begin; key < std::min(keys, begin + keys_each); ++key) {
      weight = std::max(weight, weights.at(row, key));
    }
    const int level =
        largest > 0 ? static_cast<int>(std::ceil(weight / largest * 4)) : 0;
    for (int i = 0; i < width; ++i) {
      shades += ascii ? kAscii[level] : kBlocks[level];
    }
  }
  return shades;
}

std::string Map(const Matrix& weights, bool ascii) {
  const char* edge = ascii ? "|" : "│";
  std::string out;
  const std::vector<int64_t> rows = Shown(weights.rows, 2 * kMaxRows);
  size_t width = 0;
  for (const int64_t row : rows) {
    width = std::max(width, Label("query", row).size());
  }
  for (const int64_t row : rows) {
    const std::string label = Label("query", row);
    absl::StrAppend(&out, "  ", std::string(width - label.size(), ' '), label);
    if (row != kGap) {
      absl::StrAppend(&out, "  ", edge, ShadedRow(weights, row, ascii), edge);
    }
    out += '\n';
  }
  return out;
}

std::string JoinedKeys(int64_t keys) {
  const int64_t each = KeysEach(keys);
  return each == 1 ? "" : absl::StrCat("; ", each, " keys a character");
}

std::string ScaleText(const Explanation& explanation) {
  const std::string factor = absl::StrFormat("%.6g", explanation.scale);
  if (!explanation.default_scale) return absl::StrCat(factor, ", as asked for");
  return absl::StrCat(factor, " = 1 / sqrt(", explanation.head_size, ")");
}

}  // namespace

std::string Render(const Explanation& explanation, bool ascii) {
  const Matrix& weights = explanation.weights;
  std::string out = absl::StrCat(
      "Batch ", explanation.batch, ", head ", explanation.head,
      ". Queries: ", weights.rows, ". Keys: ", weights.columns, ", of size ",
      explanation.head_size, ". Values of size ", explanation.output.columns,
      ".\n\n1. Similarity: the dot product of each query with each key\n",
      Table(explanation.similarity, "key"), "\n2. Scaling: times ",
      ScaleText(explanation), "\n", Table(explanation.scaled, "key"));
  if (explanation.capped) {
    const std::string cap = absl::StrFormat("%.6g", explanation.softcap);
    absl::StrAppend(&out, "\n   Soft cap: ", cap, " * tanh(score / ", cap,
                    ")\n", Table(*explanation.capped, "key"));
  }
  if (explanation.biased) {
    absl::StrAppend(&out,
                    "\n   Bias and masks: -inf hides a key from a query\n",
                    Table(*explanation.biased, "key"));
  }
  absl::StrAppend(&out, "\n3. Softmax: each query's scores become weights",
                  explanation.has_sink ? "; the sink takes the rest\n" : "\n",
                  Table(weights, "key"), "\n",
                  "   The same, shaded by the share of the row's largest",
                  JoinedKeys(weights.columns), "\n", Map(weights, ascii),
                  "\n4. Weighted sum: the values, by those weights\n",
                  Table(explanation.output, "column"));
  return out;
}

}  // namespace attention::cli
