// A reader of JSON for the two texts that the backend meets: a model's configuration, and a safetensors file's header.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace token_stream {

// A JSON value. Asking it for a type that it does not have throws std::invalid_argument.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json>;

  // Throws std::invalid_argument with the position of the first character that is not JSON.
  static Json parse(std::string_view text);

  const std::string& string() const { return get<std::string>("a string"); }
  double number() const { return get<double>("a number"); }
  const Array& array() const { return get<Array>("an array"); }
  const Object& object() const { return get<Object>("an object"); }

  // A number that is whole and not negative.
  size_t size() const;

  // The member of an object; one that is missing throws std::invalid_argument with its name.
  const Json& at(const std::string& name) const;

  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value;

 private:
  template <typename T>
  const T& get(const char* expected) const;
};

}  // namespace token_stream
