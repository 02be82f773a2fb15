// A safetensors file: eight bytes with the length of a JSON header, the header, and the tensors' bytes.
// Format: https://github.com/huggingface/safetensors
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace token_stream {

// The tensors of a file, in memory. Every function throws std::runtime_error, with the path, where the file is not what
// it should be.
class SafeTensors {
 public:
  explicit SafeTensors(const std::string& path);

  // Values of a tensor, row by row. Its type must be F16 or F32 for floats, I32 for ids, U8 for bytes.
  std::vector<float> floats(const std::string& name, const std::vector<size_t>& shape) const;
  std::vector<int32_t> ids(const std::string& name) const;
  std::vector<uint8_t> bytes(const std::string& name) const;

  // An entry of the header's "__metadata__".
  const std::string& metadata(const std::string& name) const;

  const std::string& path() const { return path_; }

 private:
  struct Tensor {
    std::string dtype;
    std::vector<size_t> shape;
    size_t begin, end;  // in data_
  };

  const Tensor& tensor(const std::string& name) const;
  template <typename T>
  std::vector<T> values(const Tensor& tensor) const;
  void read_header(const std::string& text);
  void check(const std::string& name, const Tensor& tensor) const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::vector<char> data_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace token_stream
