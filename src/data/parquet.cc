// The schema is a tree; each leaf of it is a column with two levels for each value. A definition level says how many of
// the optional and repeated fields on the way to the leaf are there, a repetition level at which repeated field a new
// element begins (0: a new row). Reading a row walks the tree and takes one value of every leaf that it meets.
#include "data/parquet.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "data/parquet_column.h"
#include "data/row_formats.h"

namespace saaz {
namespace {

constexpr int kMaxSchemaDepth = 16;
constexpr int64_t kByteArray = 6;

/// What row_formats.cc looks at.
bool is_read_column(std::string_view name) { return is_one_of(name, kTextColumns) || name == "license"; }
bool is_read_member(std::string_view name) {
  return is_one_of(name, kTextMembers) || name == "role" || name == "from" || name == "type";
}

/// A field as rows show it. It is null below `def`; a list has an element from `element_def` on.
struct Field {
  enum class Kind { text, list, object };
  Kind kind = Kind::object;
  std::string name;
  uint32_t def = 0, element_def = 0, element_rep = 0;
  std::vector<Field> children;  // of a list: its element alone
  size_t column = 0;            // of a text: index into `columns`
};

struct Schema {
  Field root;
  std::vector<ColumnShape> columns;  // those read
  std::vector<size_t> leaf_of;       // the place of each among all leaves of the file
  size_t n_leaves = 0;
};

class SchemaBuilder {
 public:
  SchemaBuilder(const std::vector<SchemaElement>& elements, const std::string& name)
      : elements_(elements), name_(name) {}

  Schema build() {
    check(!elements_.empty(), ExitCode::bad_input, "{}: a Parquet file without a schema", name_);
    read_object(out_.root, next(), {});
    check(at_ == elements_.size(), ExitCode::bad_input, "{}: {} schema elements too many: the file is damaged", name_,
          elements_.size() - at_);
    return std::move(out_);
  }

 private:
  /// Levels on the way to a field, and whether it is read at all.
  struct Way {
    std::string path;
    uint32_t def = 0, rep = 0;
    bool is_read = true;
    int depth = 0;
  };

  const SchemaElement& next() {
    check(at_ < elements_.size(), ExitCode::bad_input, "{}: the schema ends inside a group: the file is damaged",
          name_);
    return elements_[at_++];
  }

  /// Adds the field that starts at `element` to `parent`; leaves that are not read are only counted.
  void add_field(Field& parent, const SchemaElement& element, Way way) {
    check(++way.depth <= kMaxSchemaDepth, ExitCode::bad_input, "{}: a schema more than {} deep", name_,
          kMaxSchemaDepth);
    Field field{.name = element.name};
    if (element.repetition == Repetition::optional) ++way.def;
    field.def = way.def;
    if (element.repetition == Repetition::repeated) {
      read_list(field, element, way);
    } else if (element.is_list && element.num_children == 1 &&
               elements_[std::min(at_, elements_.size() - 1)].repetition == Repetition::repeated) {
      read_annotated_list(field, element, way);
    } else {
      read_content(field, element, way);
    }
    const bool is_empty = field.kind != Field::Kind::text && field.children.empty();
    if (way.is_read && !is_empty) parent.children.push_back(std::move(field));
  }

  /// `element` itself, apart from its repetition.
  void read_content(Field& field, const SchemaElement& element, const Way& way) {
    if (element.type) return read_leaf(field, element, way);
    read_object(field, element, way);
  }

  void read_object(Field& field, const SchemaElement& element, const Way& way) {
    for (int64_t i = 0; i < element.num_children; ++i) {
      const SchemaElement& child = next();
      Way below = way;
      below.is_read = way.is_read && (way.depth == 0 ? is_read_column(child.name) : is_read_member(child.name));
      below.path += (way.path.empty() ? "" : ".") + child.name;
      add_field(field, child, below);
    }
  }

  void read_leaf(Field& field, const SchemaElement& element, const Way& way) {
    field.kind = Field::Kind::text;
    ++out_.n_leaves;
    if (!way.is_read) return;
    field.column = out_.columns.size();
    out_.columns.push_back({way.path, *element.type == kByteArray, way.def, way.rep});
    out_.leaf_of.push_back(out_.n_leaves - 1);
  }

  /// A repeated `element` is a list of what it is.
  void read_list(Field& list, const SchemaElement& element, Way way) {
    list.kind = Field::Kind::list;
    list.element_def = ++way.def, list.element_rep = ++way.rep;
    Field item{.def = way.def};
    read_content(item, element, way);
    add_item(list, std::move(item), way);
  }

  /// LIST: a group around a repeated group around the element. Old writers leave the middle out, and then the repeated
  /// field is the element; the format tells the two by these rules.
  void read_annotated_list(Field& list, const SchemaElement& element, Way way) {
    const SchemaElement& repeated = next();
    const bool is_element = repeated.type || repeated.num_children != 1 || repeated.name == "array" ||
                            repeated.name == element.name + "_tuple";
    if (is_element) return read_list(list, repeated, way);
    list.kind = Field::Kind::list;
    list.element_def = ++way.def, list.element_rep = ++way.rep;
    add_field(list, next(), way);
  }

  void add_item(Field& list, Field item, const Way& way) {
    const bool is_empty = item.kind != Field::Kind::text && item.children.empty();
    if (way.is_read && !is_empty) list.children.push_back(std::move(item));
  }

  const std::vector<SchemaElement>& elements_;
  const std::string& name_;
  size_t at_ = 0;
  Schema out_;
};

/// The rows of one row group.
class RowReader {
 public:
  RowReader(std::vector<ColumnReader>& columns, const std::string& name) : columns_(columns), name_(name) {}

  /// The value of `field`, whose first level is `rep`: 0 for a new row.
  Value read(const Field& field, uint32_t rep) {
    ColumnReader& first = columns_[first_column(field)];
    const uint32_t def = first.def();
    if (def < field.def) return skip(field, rep, def), Value();
    switch (field.kind) {
      case Field::Kind::text:
        expect_levels(first, rep, field.def);
        return first.take_text();
      case Field::Kind::object:
        return read_object(field, rep);
      case Field::Kind::list:
        break;
    }
    Value list = Value::array();
    if (def < field.element_def) return skip(field, rep, def), list;
    do {
      list.push_back(read(field.children[0], rep));
      rep = field.element_rep;
    } while (!first.at_end() && first.rep() == rep);
    return list;
  }

  Value read_object(const Field& field, uint32_t rep) {
    Value object = Value::object();
    for (const Field& child : field.children) object.set(child.name, read(child, rep));
    return object;
  }

 private:
  static size_t first_column(const Field& field) {
    const Field* at = &field;
    while (at->kind != Field::Kind::text) at = &at->children[0];
    return at->column;
  }

  /// Takes the one value that every leaf below a null or an empty list has.
  void skip(const Field& field, uint32_t rep, uint32_t def) {
    if (field.kind == Field::Kind::text) {
      expect_levels(columns_[field.column], rep, def);
      columns_[field.column].take_absent();
    }
    for (const Field& child : field.children) skip(child, rep, def);
  }

  /// The leaves of a row must tell the same story.
  void expect_levels(ColumnReader& column, uint32_t rep, uint32_t def) const {
    check(column.rep() == rep && column.def() == def, ExitCode::bad_input,
          "{}: columns of one row disagree about its lists: the file is damaged", name_);
  }

  std::vector<ColumnReader>& columns_;
  const std::string& name_;
};

std::vector<ColumnReader> open_columns(Bytes file, const Schema& schema, const RowGroup& group, const std::string& name,
                                       UnfoldBudget& budget) {
  check(group.columns.size() == schema.n_leaves, ExitCode::bad_input,
        "{}: a row group of {} columns, but the schema has {}: the file is damaged", name, group.columns.size(),
        schema.n_leaves);
  std::vector<ColumnReader> out;
  for (size_t i = 0; i < schema.columns.size(); ++i)
    out.emplace_back(file, group.columns[schema.leaf_of[i]], schema.columns[i], name, budget);
  return out;
}

}  // namespace

bool is_parquet(Bytes file) {
  return std::string_view(reinterpret_cast<const char*>(file.data()), file.size()).starts_with("PAR1");
}

void read_parquet(Bytes file, const std::string& name, const std::function<void(Value)>& visit) {
  const ParquetMetadata metadata = read_parquet_metadata(file, name);
  const Schema schema = SchemaBuilder(metadata.schema, name).build();
  if (schema.columns.empty()) {
    std::string names;
    for (size_t i = 1; i < metadata.schema.size(); ++i)
      names += (names.empty() ? "" : ", ") + printable(metadata.schema[i].name, 40);
    fail(ExitCode::bad_input,
         "{}: no column of it can be trained on; expected messages, conversations, instruction and output, prompt and "
         "completion, inputs and targets, or text, found {}",
         name, printable(names, 120));
  }
  UnfoldBudget budget(file.size(), name);
  for (const RowGroup& group : metadata.row_groups) {
    std::vector<ColumnReader> columns = open_columns(file, schema, group, name, budget);
    RowReader rows(columns, name);
    for (int64_t i = 0; i < group.num_rows; ++i) visit(rows.read_object(schema.root, 0));
    for (ColumnReader& column : columns)
      check(column.at_end(), ExitCode::bad_input, "{}: more values than rows: the file is damaged", name);
  }
}

}  // namespace saaz
