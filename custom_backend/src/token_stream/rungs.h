// The four rungs of the ladder: what a message holds, and what is kept of it for the next one.
#pragma once

#include <string>

#include "token_bytes.h"

namespace token_stream {

// `pending` are the ids that are held back. A message is made of them and the newest token, and sent; then `keep` says
// what is pending from there on.
struct Rung {
  const char* name;
  bool buffer_of_instance;  // whether one `pending` serves all requests, or each request has its own
  Ids (*message)(const Ids& pending, int32_t token);
  void (*keep)(Ids& pending, const Ids& message, bool clean);  // clean: the message is whole characters
};

// Throws std::invalid_argument for a name that is not a rung's.
const Rung& find_rung(const std::string& name);

}  // namespace token_stream
