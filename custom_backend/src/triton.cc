#include "triton.h"

#include <charconv>
#include <chrono>
#include <cstring>

namespace token_stream {
namespace {

std::string model_config(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const char* base = nullptr;
  size_t bytes = 0;
  TRITONSERVER_Error* error = TRITONSERVER_MessageSerializeToJson(message, &base, &bytes);
  const std::string text = error == nullptr ? std::string(base, bytes) : "";
  TRITONSERVER_MessageDelete(message);
  check(error);
  return text;
}

// One of the buffers that an input lies in; says how many bytes it had.
uint64_t copy_part(TRITONBACKEND_Input* input, uint32_t index, char* to) {
  const void* from = nullptr;
  uint64_t bytes = 0;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_InputBuffer(input, index, &from, &bytes, &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) {
    Device(static_cast<int>(memory_id)).copy(to, from, bytes);
  } else if (bytes > 0) {
    std::memcpy(to, from, bytes);
  }
  return bytes;
}

const TRITONSERVER_Parameter* label(const char* name, const std::string& value) {
  return TRITONSERVER_ParameterNew(name, TRITONSERVER_PARAMETER_STRING, value.c_str());
}

}  // namespace

// --- errors -----------------------------------------------------------------------------------------------------------

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const std::string message = TRITONSERVER_ErrorMessage(error);
  TRITONSERVER_ErrorDelete(error);
  throw std::runtime_error(message);
}

void tolerate(TRITONSERVER_Error* error, const char* what) {
  if (error == nullptr) return;
  log(TRITONSERVER_LOG_ERROR, std::string("token_stream: ") + what + ": " + TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

void log(TRITONSERVER_LogLevel level, const std::string& text) {
  TRITONSERVER_ErrorDelete(TRITONSERVER_LogMessage(level, __FILE__, __LINE__, text.c_str()));
}

void check_api_version() {
  uint32_t major = 0, minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != TRITONBACKEND_API_VERSION_MAJOR || minor < TRITONBACKEND_API_VERSION_MINOR) {
    throw std::runtime_error("this server has backend API " + std::to_string(major) + "." + std::to_string(minor) +
                             ", but this backend was built for " + std::to_string(TRITONBACKEND_API_VERSION_MAJOR) +
                             "." + std::to_string(TRITONBACKEND_API_VERSION_MINOR) +
                             ": build it with the headers of this server (TRITON_INCLUDE_DIR)");
  }
}

uint64_t now_ns() {
  const auto since_epoch = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count());
}

// --- models and instances ---------------------------------------------------------------------------------------------

ModelParameters::ModelParameters(TRITONBACKEND_Model* model) : config_(Json::parse(model_config(model))) {}

const std::string& ModelParameters::text(const char* name) const {
  try {
    return config_.at("parameters").at(name).at("string_value").string();
  } catch (const std::invalid_argument&) {
    throw std::invalid_argument(std::string("model parameter \"") + name + "\" is missing in config.pbtxt");
  }
}

int64_t ModelParameters::number(const char* name, int64_t least, int64_t most) const {
  const std::string& given = text(name);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), number);
  if (error != std::errc() || end != given.data() + given.size() || number < least || number > most) {
    throw std::invalid_argument(std::string("model parameter \"") + name + "\" is \"" + given +
                                "\"; expected a whole number from " + std::to_string(least) + " to " +
                                std::to_string(most));
  }
  return number;
}

Place find_place(TRITONBACKEND_ModelInstance* instance) {
  TRITONSERVER_InstanceGroupKind kind{};
  Place place{instance, nullptr, 0};
  check(TRITONBACKEND_ModelInstanceKind(instance, &kind));
  check(TRITONBACKEND_ModelInstanceDeviceId(instance, &place.device_id));
  if (kind == TRITONSERVER_INSTANCEGROUPKIND_GPU) place.device = std::make_unique<Device>(place.device_id);
  return place;
}

std::string model_name(TRITONBACKEND_Model* model) {
  const char* name = nullptr;
  check(TRITONBACKEND_ModelName(model, &name));
  return name;
}

std::string model_file(TRITONBACKEND_Model* model, const ModelParameters& parameters, const char* parameter) {
  TRITONBACKEND_ArtifactType type{};
  const char* folder = nullptr;
  check(TRITONBACKEND_ModelRepository(model, &type, &folder));
  if (type != TRITONBACKEND_ARTIFACT_FILESYSTEM) throw std::runtime_error("the model repository is no folder");
  return std::string(folder) + "/" + parameters.text(parameter);
}

StreamGauge::StreamGauge(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* instance) {
  uint64_t version = 0;
  const char* name = nullptr;
  check(TRITONBACKEND_ModelVersion(model, &version));
  check(TRITONBACKEND_ModelInstanceName(instance, &name));
  if (TRITONSERVER_Error* error =
          TRITONSERVER_MetricFamilyNew(&family_, TRITONSERVER_METRIC_KIND_GAUGE, "lab_open_streams",
                                       "Streams that a node of the lab holds state for")) {
    log(TRITONSERVER_LOG_INFO, std::string("token_stream: no gauge: ") + TRITONSERVER_ErrorMessage(error));
    TRITONSERVER_ErrorDelete(error);
    return;
  }
  const TRITONSERVER_Parameter* labels[] = {label("model", model_name(model)),
                                            label("version", std::to_string(version)), label("instance", name)};
  tolerate(TRITONSERVER_MetricNew(&metric_, family_, labels, std::size(labels)), "make a gauge");
  for (const TRITONSERVER_Parameter* one : labels) {
    TRITONSERVER_ParameterDelete(const_cast<TRITONSERVER_Parameter*>(one));
  }
}

StreamGauge::~StreamGauge() {
  if (metric_ != nullptr) tolerate(TRITONSERVER_MetricDelete(metric_), "delete a gauge");
  if (family_ != nullptr) tolerate(TRITONSERVER_MetricFamilyDelete(family_), "delete a family of gauges");
}

void StreamGauge::set(size_t streams) {
  if (metric_ == nullptr || streams == last_) return;
  tolerate(TRITONSERVER_MetricSet(metric_, static_cast<double>(streams)), "set a gauge");
  last_ = streams;
}

// --- tensors ----------------------------------------------------------------------------------------------------------

std::optional<Input> read_input(TRITONBACKEND_Request* request, const char* name) {
  TRITONBACKEND_Input* input = nullptr;
  if (TRITONSERVER_Error* missing = TRITONBACKEND_RequestInput(request, name, &input)) {
    TRITONSERVER_ErrorDelete(missing);
    return std::nullopt;
  }
  const int64_t* dims = nullptr;
  uint32_t rank = 0, parts = 0;
  uint64_t bytes = 0;
  check(TRITONBACKEND_InputProperties(input, nullptr, nullptr, &dims, &rank, &bytes, &parts));
  Input read{std::string(bytes, '\0'), {dims, dims + rank}};
  char* to = read.bytes.data();
  for (uint32_t i = 0; i < parts; ++i) to += copy_part(input, i, to);
  return read;
}

std::string element(const std::string& text) {
  const auto length = static_cast<uint32_t>(text.size());
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + text;
}

bool put(TRITONBACKEND_Response* response, const Output& output, const Place* on_device) {
  TRITONBACKEND_Output* made = nullptr;
  check(TRITONBACKEND_ResponseOutput(response, &made, output.name, output.type, output.dims.data(),
                                     static_cast<uint32_t>(output.dims.size())));
  const bool ask = on_device != nullptr && on_device->device != nullptr;
  TRITONSERVER_MemoryType memory = ask ? TRITONSERVER_MEMORY_GPU : TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = ask ? on_device->device_id : 0;
  void* buffer = nullptr;
  check(TRITONBACKEND_OutputBuffer(made, &buffer, output.bytes, &memory, &memory_id));
  const bool on_gpu = memory == TRITONSERVER_MEMORY_GPU;
  if (output.bytes == 0) return on_gpu;
  if (on_gpu) {
    Device(static_cast<int>(memory_id)).copy(buffer, output.data, output.bytes);
  } else {
    std::memcpy(buffer, output.data, output.bytes);
  }
  return on_gpu;
}

// --- requests ---------------------------------------------------------------------------------------------------------

std::set<std::string> requested_outputs(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  std::set<std::string> names;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    names.emplace(name);
  }
  return names;
}

Parameters read_parameters(TRITONBACKEND_Request* request) {
  Parameters parameters;
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    const void* value = nullptr;
    TRITONSERVER_ParameterType type{};
    check(TRITONBACKEND_RequestParameter(request, i, &name, &type, &value));
    if (type == TRITONSERVER_PARAMETER_BOOL) {
      parameters[name] = *static_cast<const bool*>(value);
    } else if (type == TRITONSERVER_PARAMETER_INT) {
      parameters[name] = *static_cast<const int64_t*>(value);
    } else if (type == TRITONSERVER_PARAMETER_DOUBLE) {
      parameters[name] = *static_cast<const double*>(value);
    } else if (type == TRITONSERVER_PARAMETER_STRING) {
      parameters[name] = std::string(static_cast<const char*>(value));
    }
  }
  return parameters;
}

void answer_with_error(TRITONBACKEND_Request* request, const char* text) {
  TRITONSERVER_Error* error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, text);
  TRITONBACKEND_Response* response = nullptr;
  tolerate(TRITONBACKEND_ResponseNew(&response, request), "make a response");
  if (response != nullptr) {
    tolerate(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error), "send an error");
  }
  TRITONSERVER_ErrorDelete(error);
  tolerate(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL), "release a request");
}

}  // namespace token_stream
