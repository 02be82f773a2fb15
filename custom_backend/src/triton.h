// What both backends need of Triton's C API: errors as exceptions, tensors in and out, a model's parameters, a gauge.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#include "json.h"
#include "parameters.h"
#include "triton_api.h"

namespace token_stream {

// --- errors -----------------------------------------------------------------------------------------------------------

// Throws std::runtime_error for an error of Triton's, and frees it.
void check(TRITONSERVER_Error* error);

// Writes an error down, where nothing else can be done about it, and frees it.
void tolerate(TRITONSERVER_Error* error, const char* what);

void log(TRITONSERVER_LogLevel level, const std::string& text);

// Triton calls C functions, and no exception may leave one.
template <typename Work>
TRITONSERVER_Error* guarded(const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, error.what());
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
  }
}

// Throws std::runtime_error where this server has an older API than the backend was built for.
void check_api_version();

// Nanoseconds, as the server's statistics want them.
uint64_t now_ns();

// --- models and instances ---------------------------------------------------------------------------------------------

// The parameters in a model's configuration, all of which are strings there. One that is missing, or no number in its
// bounds where one is expected, throws std::invalid_argument with its name.
class ModelParameters {
 public:
  explicit ModelParameters(TRITONBACKEND_Model* model);

  const std::string& text(const char* name) const;
  int64_t number(const char* name, int64_t least, int64_t most = std::numeric_limits<int64_t>::max()) const;

 private:
  Json config_;
};

// Where an instance is.
struct Place {
  TRITONBACKEND_ModelInstance* instance;
  std::unique_ptr<Device> device;  // null on a CPU
  int32_t device_id;
};

Place find_place(TRITONBACKEND_ModelInstance* instance);
std::string model_name(TRITONBACKEND_Model* model);
// The path of a file in the model's folder, which a parameter of the model names.
std::string model_file(TRITONBACKEND_Model* model, const ModelParameters& parameters, const char* parameter);

// The gauge `lab_open_streams` among the server's metrics, labelled with model, version and instance. A server without
// metrics has none.
class StreamGauge {
 public:
  StreamGauge(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* instance);
  ~StreamGauge();
  StreamGauge(const StreamGauge&) = delete;
  StreamGauge& operator=(const StreamGauge&) = delete;

  // Triton is asked only when the number has changed.
  void set(size_t streams);

 private:
  TRITONSERVER_MetricFamily* family_ = nullptr;
  TRITONSERVER_Metric* metric_ = nullptr;
  size_t last_ = 0;
};

// State that Triton keeps for a model or an instance, from its Initialize to its Finalize. `Made` is made by `make`, and
// Triton holds it from then on.
template <typename Holder, typename Made>
void hand_over(TRITONSERVER_Error* (*set_state)(Holder*, void*), Holder* holder, std::unique_ptr<Made> made) {
  check(set_state(holder, made.get()));
  made.release();
}

template <typename Made, typename Holder>
Made* held_by(TRITONSERVER_Error* (*get_state)(Holder*, void**), Holder* holder) {
  void* made = nullptr;
  check(get_state(holder, &made));
  return static_cast<Made*>(made);
}

// --- tensors ----------------------------------------------------------------------------------------------------------

// The bytes of an input and its dims; none where the request does not have it.
struct Input {
  std::string bytes;
  std::vector<int64_t> dims;
};

std::optional<Input> read_input(TRITONBACKEND_Request* request, const char* name);

// The elements of an input.
template <typename T>
std::vector<T> values(const Input& input) {
  std::vector<T> out(input.bytes.size() / sizeof(T));
  input.bytes.copy(reinterpret_cast<char*>(out.data()), out.size() * sizeof(T));
  return out;
}

struct Output {
  const char* name;
  TRITONSERVER_DataType type;
  std::vector<int64_t> dims;
  const void* data;
  size_t bytes;
};

template <typename T>
constexpr TRITONSERVER_DataType type_of();
template <>
constexpr TRITONSERVER_DataType type_of<int32_t>() { return TRITONSERVER_TYPE_INT32; }
template <>
constexpr TRITONSERVER_DataType type_of<int64_t>() { return TRITONSERVER_TYPE_INT64; }

// An output with one axis.
template <typename T>
Output output(const char* name, const std::vector<T>& values) {
  return {name, type_of<T>(), {static_cast<int64_t>(values.size())}, values.data(), values.size() * sizeof(T)};
}

// A string as the element of a string tensor: its length in four bytes, then its text.
std::string element(const std::string& text);

// Copy an output into a response. Triton allocates it, in the GPU's memory if a device is given and Triton can; says
// whether it lies there.
bool put(TRITONBACKEND_Response* response, const Output& output, const Place* on_device = nullptr);

// --- requests ---------------------------------------------------------------------------------------------------------

// The names of the outputs that a request asks for.
std::set<std::string> requested_outputs(TRITONBACKEND_Request* request);

// A request's parameters; those of a type that no client library sends are left out.
Parameters read_parameters(TRITONBACKEND_Request* request);

// Answer a request with an error, and release it.
void answer_with_error(TRITONBACKEND_Request* request, const char* text);

}  // namespace token_stream
