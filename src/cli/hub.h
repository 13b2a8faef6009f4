// What the commands that know the Hugging Face hub share: the environment's settings, the flags, and where a model
// named like on the hub lies.
#pragma once

#include <string>

#include "cli/cli.h"
#include "hub/client.h"

namespace saaz {

struct HubFlags {
  std::string token_file;
  bool send_token = false;
  bool offline = false;
};
/// --hf-token-file, --send-token
void declare_hub(Arguments& arguments, HubFlags& flags);

/// From HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT,
/// SSL_CERT_FILE and the flags. `globals` must live as long as what is returned.
HubSettings hub_settings(const HubFlags& flags, const Globals& globals);
/// $HF_HUB_CACHE, or hub/ in the home of Hugging Face's tools.
fs::path hub_cache();
/// $HF_HOME or ~/.cache/huggingface
fs::path hub_home();

/// The snapshot's folder for "owner/name" or "owner/name@revision" that was fetched; paths, and anything else, as they
/// are.
std::string find_fetched(const std::string& name, RepoKind kind = RepoKind::model);
/// The same, for recipes.
FetchedNames fetched_names();
/// The same; bad_input for what is no path and was not fetched.
std::string find_model(const std::string& name);

}  // namespace saaz
