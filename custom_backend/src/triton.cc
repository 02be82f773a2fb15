#include "triton.h"

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

int64_t ModelParameters::number(const char* name) const {
  const std::string& given = text(name);
  constexpr size_t kMostDigits = 18;  // fit into 64 bits
  if (given.empty() || given.size() > kMostDigits || given.find_first_not_of("0123456789") != std::string::npos) {
    throw std::invalid_argument(std::string("model parameter \"") + name + "\" is \"" + given +
                                "\"; expected a whole number");
  }
  return std::stoll(given);
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
  if (TRITONSERVER_Error* error =
          TRITONSERVER_MetricFamilyNew(&family_, TRITONSERVER_METRIC_KIND_GAUGE, "lab_open_streams",
                                       "Streams that a node of the lab holds state for")) {
    log(TRITONSERVER_LOG_INFO, std::string("token_stream: no gauge: ") + TRITONSERVER_ErrorMessage(error));
    TRITONSERVER_ErrorDelete(error);
    return;
  }
  uint64_t version = 0;
  const char* name = nullptr;
  check(TRITONBACKEND_ModelVersion(model, &version));
  check(TRITONBACKEND_ModelInstanceName(instance, &name));
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
  for (uint32_t i = 0; i < parts; ++i) {
    const void* from = nullptr;
    uint64_t part = 0;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_InputBuffer(input, i, &from, &part, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) {
      Device(static_cast<int>(memory_id)).copy(to, from, part);
    } else if (part > 0) {
      std::memcpy(to, from, part);
    }
    to += part;
  }
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

std::vector<std::string> requested_outputs(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  std::vector<std::string> names;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    names.emplace_back(name);
  }
  return names;
}

}  // namespace token_stream
