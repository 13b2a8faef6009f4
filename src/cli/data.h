// What the commands below `saaz data` share.
#pragma once

#include <string>
#include <vector>

#include "cli/cli.h"
#include "data/conversation.h"

namespace saaz {

/// All rows of the files, or of the training files of folders.
std::vector<Row> load_all(const std::vector<std::string>& paths, BadRows& bad);

/// Each declares its command below `data`; when it was named, `chosen` becomes its action.
void declare_data_validate(Arguments& data, const Globals& globals, Action& chosen);
void declare_data_normalize(Arguments& data, const Globals& globals, Action& chosen);
void declare_data_preview(Arguments& data, const Globals& globals, Action& chosen);

}  // namespace saaz
