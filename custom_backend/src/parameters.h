// The parameters of a request.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>

namespace token_stream {

using Parameter = std::variant<bool, int64_t, double, std::string>;
using Parameters = std::map<std::string, Parameter>;

}  // namespace token_stream
