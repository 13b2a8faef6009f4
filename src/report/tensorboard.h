// TensorBoard event files: TFRecord frames (length, masked CRC-32C of it, data, masked CRC-32C of the data) around
// Event messages. Tags are those of Hugging Face's TensorBoardCallback. Where they lie and what has read them:
// docs/run-folder.md.
#pragma once

#include <string>

#include "base/value.h"

namespace saaz {

/// The file's first bytes: its version, and the recipe as the text that TensorBoard shows.
std::string tensorboard_header(double unix_time, const std::string& recipe);
/// The bytes one event adds; none for those TensorBoard has no place for.
std::string tensorboard_bytes(const Value& event);

}  // namespace saaz
