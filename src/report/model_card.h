// The model card of a run, in English and Persian: YAML header as the Hub reads it, then what was trained, on what,
// how, and what came of it. Invariant: every figure is one of the run's events, its recipe or the merge's certificate;
// what is not known is left out.
#pragma once

#include "report/run_record.h"

namespace saaz {

/// `certificate`: of the merge, for the card of a merged model; null for an adapter's. `has_charts`: charts/ is beside
/// the card.
std::string model_card(const RunRecord& run, const Value& certificate, bool has_charts);

/// README.md of a run folder, and Gemma's NOTICE.
void write_model_card(const RunRecord& run, const fs::path& folder);
/// README.md, NOTICE and charts/ of a merged folder, when `adapter` is a run folder; otherwise the NOTICE only.
void write_merged_card(const fs::path& adapter, const Value& certificate, const fs::path& folder);

}  // namespace saaz
