// The parameters of a request, read and checked, and the parameters of a model.
#pragma once

#include <cstdint>
#include <optional>

#include "parameters.h"

namespace token_stream {

// What the configuration of a model says: see models/token_stream_append/config.pbtxt.
struct Limits {
  int64_t default_message_ids, hard_message_ids;
  size_t max_streams, max_waiting;
  double grant_seconds;
};

// What a request may ask for; see `Options` in model_repository/inference/options.py, which says the same.
struct Options {
  int64_t max_message_ids = 0;
  bool trace_heap = false, guard = false, log = false;
  std::optional<int64_t> window, window_key, grant;
};

// Throws std::invalid_argument for a parameter that is not what it should be.
Options read_options(const Parameters& given, const Limits& limits);

}  // namespace token_stream
