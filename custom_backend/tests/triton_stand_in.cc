#include "triton_stand_in.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "check.h"

extern "C" int cudaMalloc(void** memory, size_t bytes);
extern "C" int cudaFree(void* memory);

namespace {

std::mutex mutex;
std::map<std::string, size_t> there, ever;
std::vector<std::string> log_lines;
std::string failing;
triton::Reports reported{};
std::atomic<bool> gpu_memory{false};
std::atomic<double> gauge_value{-1};
uint32_t api_major = TRITONBACKEND_API_VERSION_MAJOR, api_minor = TRITONBACKEND_API_VERSION_MINOR;

// Something of Triton's, counted while it is there.
class Counted {
 public:
  explicit Counted(const char* kind) : kind_(kind) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++there[kind_];
    ++ever[kind_];
  }
  ~Counted() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--there[kind_] == 0) there.erase(kind_);
  }
  Counted(const Counted&) = delete;

 private:
  const char* kind_;
};

void count(size_t triton::Reports::*what) {
  const std::lock_guard<std::mutex> lock(mutex);
  ++(reported.*what);
}

}  // namespace

struct TRITONSERVER_Error {
  TRITONSERVER_Error_Code code;
  std::string message;
  Counted counted{"error"};
};
struct TRITONSERVER_Message {
  std::string text;
  Counted counted{"message"};
};
struct TRITONSERVER_Parameter {
  std::string name, value;
  Counted counted{"parameter"};
};
struct TRITONSERVER_MetricFamily {
  size_t metrics = 0;
  Counted counted{"metric family"};
};
struct TRITONSERVER_Metric {
  TRITONSERVER_MetricFamily* family;
  Counted counted{"metric"};
};
struct TRITONBACKEND_Model {
  std::string name, config, folder;
  void* state = nullptr;
};
struct TRITONBACKEND_ModelInstance {
  TRITONBACKEND_Model* model;
  TRITONSERVER_InstanceGroupKind kind;
  void* state = nullptr;
};
struct TRITONBACKEND_Input {
  triton::Input input;
  std::vector<void*> on_gpu;
};
struct TRITONBACKEND_Request {
  triton::Call call;
  std::map<std::string, TRITONBACKEND_Input> inputs;
  std::shared_ptr<triton::Answers> answers;
  size_t factories = 0;
  Counted counted{"request"};
};
struct TRITONBACKEND_ResponseFactory {
  TRITONBACKEND_Request* request;
  std::shared_ptr<triton::Answers> answers;
  Counted counted{"factory"};
};
struct TRITONBACKEND_Output {
  std::vector<int64_t> dims;
  std::string cpu;
  void* gpu = nullptr;
  size_t bytes = 0;
};
struct TRITONBACKEND_Response {
  std::shared_ptr<triton::Answers> answers;
  std::map<std::string, TRITONBACKEND_Output> outputs;
  Counted counted{"response"};

  ~TRITONBACKEND_Response() {
    for (auto& [name, output] : outputs) {
      if (output.gpu != nullptr) cudaFree(output.gpu);
    }
  }
};
struct TRITONBACKEND_ModelInstanceResponseStatistics {
  TRITONBACKEND_ModelInstance* instance = nullptr;
  TRITONBACKEND_ResponseFactory* factory = nullptr;
  uint64_t start = 0, output = 0, end = 0;
  bool failed = false;
  Counted counted{"statistics"};
};

namespace {

bool is_failing(const char* function) {
  const std::lock_guard<std::mutex> lock(mutex);
  return failing == function;
}

// The first line of a function that a test may let fail.
#define MAY_FAIL() \
  if (is_failing(__func__)) return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "the stand-in refuses")

std::string element_bytes(const void* value, size_t bytes) { return {static_cast<const char*>(value), bytes}; }

// What a call of the backend ended with, and frees the error.
std::string outcome(TRITONSERVER_Error* error) {
  if (error == nullptr) return "";
  const std::string message = error->message;
  TRITONSERVER_ErrorDelete(error);
  return message;
}

}  // namespace

namespace triton {

std::vector<Response> Answers::all() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return all_;
}

template <typename Condition>
void Answers::await(const Condition& condition) {
  std::unique_lock<std::mutex> lock(mutex_);
  CHECK(changed_.wait_for(lock, std::chrono::seconds(60), condition));
}

void Answers::await_release() { await([this] { return released_; }); }
void Answers::await_count(size_t responses) { await([&] { return all_.size() >= responses; }); }

void Answers::cancel() {
  const std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
}

bool Answers::cancelled() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return cancelled_;
}

size_t Answers::ends() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return ends_;
}

void Answers::add(Response response) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CHECK(!released_ && ends_ == 0);
  ends_ += response.final;
  all_.push_back(std::move(response));
  changed_.notify_all();
}

void Answers::end() {
  const std::lock_guard<std::mutex> lock(mutex_);
  CHECK(!released_ && ends_ == 0);
  ++ends_;
}

void Answers::release() {
  const std::lock_guard<std::mutex> lock(mutex_);
  CHECK(!released_);
  released_ = true;
  changed_.notify_all();
}

Parameter parameter(const std::string& name, bool value) {
  return {name, TRITONSERVER_PARAMETER_BOOL, element_bytes(&value, sizeof value)};
}
Parameter parameter(const std::string& name, int64_t value) {
  return {name, TRITONSERVER_PARAMETER_INT, element_bytes(&value, sizeof value)};
}
Parameter parameter(const std::string& name, double value) {
  return {name, TRITONSERVER_PARAMETER_DOUBLE, element_bytes(&value, sizeof value)};
}
Parameter parameter(const std::string& name, const char* value) {
  return {name, TRITONSERVER_PARAMETER_STRING, value};
}

Model::Model(const Backend& backend, const std::string& name, const std::map<std::string, std::string>& parameters,
             bool on_gpu)
    : backend_(backend), model_(new TRITONBACKEND_Model{}), instance_(new TRITONBACKEND_ModelInstance{}) {
  std::string members;
  for (const auto& [key, value] : parameters) {
    members += (members.empty() ? "\"" : ", \"") + key + "\": {\"string_value\": \"" + value + "\"}";
  }
  model_->name = name;
  model_->folder = checking::file("models/token_stream_latest");
  model_->config = "{\"name\": \"" + name + "\", \"parameters\": {" + members + "}}";
  instance_->model = model_.get();
  instance_->kind = on_gpu ? TRITONSERVER_INSTANCEGROUPKIND_GPU : TRITONSERVER_INSTANCEGROUPKIND_CPU;
  error_ = outcome(backend.initialize(nullptr));
  if (error_.empty()) error_ = outcome(backend.model_initialize(model_.get()));
  model_is_there_ = error_.empty();
  if (error_.empty()) error_ = outcome(backend.instance_initialize(instance_.get()));
  instance_is_there_ = error_.empty();
}

Model::~Model() { unload(); }

void Model::unload() {
  if (std::exchange(instance_is_there_, false)) CHECK_EQUAL(outcome(backend_.instance_finalize(instance_.get())), "");
  if (std::exchange(model_is_there_, false)) CHECK_EQUAL(outcome(backend_.model_finalize(model_.get())), "");
}

std::shared_ptr<Answers> Model::call(const Call& call) {
  auto answers = std::make_shared<Answers>();
  auto* request = new TRITONBACKEND_Request{call, {}, answers};
  for (const auto& [name, input] : call.inputs) {
    TRITONBACKEND_Input& held = request->inputs[name] = {input, {}};
    for (const std::string& part : input.parts) {
      void* memory = nullptr;
      if (input.on_gpu && cudaMalloc(&memory, part.size()) == 0) std::memcpy(memory, part.data(), part.size());
      held.on_gpu.push_back(memory);
    }
  }
  CHECK_EQUAL(outcome(backend_.execute(instance_.get(), &request, 1)), "");
  return answers;
}

std::map<std::string, size_t> left() {
  const std::lock_guard<std::mutex> lock(mutex);
  return there;
}

size_t made(const std::string& kind) {
  const std::lock_guard<std::mutex> lock(mutex);
  return ever[kind];
}

Reports reports() {
  const std::lock_guard<std::mutex> lock(mutex);
  return reported;
}

std::vector<std::string> logs() {
  const std::lock_guard<std::mutex> lock(mutex);
  return log_lines;
}

double gauge() { return gauge_value; }
void give_gpu_memory(bool gives) { gpu_memory = gives; }

void fail(const std::string& function) {
  const std::lock_guard<std::mutex> lock(mutex);
  failing = function;
}

void say_version(uint32_t major, uint32_t minor) { api_major = major, api_minor = minor; }

}  // namespace triton

// --- the API ---------------------------------------------------------------------------------------------------------

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char* msg) {
  return new TRITONSERVER_Error{code, msg};
}
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) { delete error; }
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }

TRITONSERVER_Error* TRITONSERVER_LogMessage(TRITONSERVER_LogLevel, const char*, const int, const char* msg) {
  const std::lock_guard<std::mutex> lock(mutex);
  log_lines.emplace_back(msg);
  return nullptr;
}

TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message* message, const char** base,
                                                        size_t* size) {
  MAY_FAIL();
  *base = message->text.data();
  *size = message->text.size();
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message* message) {
  delete message;
  return nullptr;
}

TRITONSERVER_Parameter* TRITONSERVER_ParameterNew(const char* name, const TRITONSERVER_ParameterType,
                                                  const void* value) {
  return new TRITONSERVER_Parameter{name, static_cast<const char*>(value)};
}
void TRITONSERVER_ParameterDelete(TRITONSERVER_Parameter* parameter) { delete parameter; }

TRITONSERVER_Error* TRITONSERVER_MetricFamilyNew(TRITONSERVER_MetricFamily** family, const TRITONSERVER_MetricKind,
                                                 const char*, const char*) {
  MAY_FAIL();
  *family = new TRITONSERVER_MetricFamily{};
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricFamilyDelete(TRITONSERVER_MetricFamily* family) {
  CHECK_EQUAL(family->metrics, 0U);  // metrics go before their family
  delete family;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricNew(TRITONSERVER_Metric** metric, TRITONSERVER_MetricFamily* family,
                                           const TRITONSERVER_Parameter** labels, const uint64_t label_count) {
  MAY_FAIL();
  std::string shown;
  for (uint64_t i = 0; i < label_count; ++i) shown += labels[i]->name + "=" + labels[i]->value + " ";
  CHECK(shown.find("model=") == 0 && shown.find(" version=3 instance=the_0 ") != shown.npos);
  ++family->metrics;
  *metric = new TRITONSERVER_Metric{family};
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricDelete(TRITONSERVER_Metric* metric) {
  --metric->family->metrics;
  delete metric;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricSet(TRITONSERVER_Metric*, double value) {
  gauge_value = value;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor) {
  *major = api_major;
  *minor = api_minor;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelConfig(TRITONBACKEND_Model* model, const uint32_t,
                                              TRITONSERVER_Message** config) {
  MAY_FAIL();
  *config = new TRITONSERVER_Message{model->config};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelName(TRITONBACKEND_Model* model, const char** name) {
  *name = model->name.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, uint64_t* version) {
  *version = 3;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(TRITONBACKEND_Model* model, TRITONBACKEND_ArtifactType* type,
                                                  const char** location) {
  *type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
  *location = model->folder.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelState(TRITONBACKEND_Model* model, void** state) {
  *state = model->state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelSetState(TRITONBACKEND_Model* model, void* state) {
  MAY_FAIL();
  model->state = state;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceName(TRITONBACKEND_ModelInstance*, const char** name) {
  *name = "the_0";
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceKind(TRITONBACKEND_ModelInstance* instance,
                                                    TRITONSERVER_InstanceGroupKind* kind) {
  *kind = instance->kind;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceDeviceId(TRITONBACKEND_ModelInstance*, int32_t* device_id) {
  *device_id = 0;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance* instance,
                                                     TRITONBACKEND_Model** model) {
  *model = instance->model;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance* instance, void** state) {
  *state = instance->state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance* instance, void* state) {
  MAY_FAIL();
  instance->state = state;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestId(TRITONBACKEND_Request* request, const char** id) {
  *id = request->call.id;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestInput(TRITONBACKEND_Request* request, const char* name,
                                               TRITONBACKEND_Input** input) {
  const auto found = request->inputs.find(name);
  if (found == request->inputs.end()) return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, "no such input");
  *input = &found->second;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestParameterCount(TRITONBACKEND_Request* request, uint32_t* count) {
  *count = static_cast<uint32_t>(request->call.parameters.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestParameter(TRITONBACKEND_Request* request, const uint32_t index,
                                                   const char** key, TRITONSERVER_ParameterType* type,
                                                   const void** value) {
  MAY_FAIL();
  const triton::Parameter& parameter = request->call.parameters.at(index);
  *key = parameter.name.c_str();
  *type = parameter.type;
  *value = parameter.bytes.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request, uint32_t* count) {
  *count = static_cast<uint32_t>(request->call.outputs.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, const uint32_t index,
                                                    const char** name) {
  *name = request->call.outputs.at(index).c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t flags) {
  CHECK_EQUAL(flags, static_cast<uint32_t>(TRITONSERVER_REQUEST_RELEASE_ALL));
  CHECK_EQUAL(request->factories, 0U);  // the backend's own rule: the factory goes first
  for (const auto& [name, input] : request->inputs) {
    for (void* memory : input.on_gpu) {
      if (memory != nullptr) cudaFree(memory);
    }
  }
  const std::shared_ptr<triton::Answers> answers = request->answers;
  delete request;
  answers->release();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char**, TRITONSERVER_DataType*,
                                                  const int64_t** shape, uint32_t* dims_count, uint64_t* byte_size,
                                                  uint32_t* buffer_count) {
  *shape = input->input.dims.data();
  *dims_count = static_cast<uint32_t>(input->input.dims.size());
  *byte_size = 0;
  for (const std::string& part : input->input.parts) *byte_size += part.size();
  *buffer_count = static_cast<uint32_t>(input->input.parts.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, const uint32_t index, const void** buffer,
                                              uint64_t* size, TRITONSERVER_MemoryType* type, int64_t* type_id) {
  MAY_FAIL();
  const std::string& part = input->input.parts.at(index);
  *size = part.size();
  *buffer = part.empty() ? nullptr : input->on_gpu[index] != nullptr ? input->on_gpu[index] : part.data();
  *type = input->on_gpu[index] != nullptr ? TRITONSERVER_MEMORY_GPU : TRITONSERVER_MEMORY_CPU;
  *type_id = 0;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryNew(TRITONBACKEND_ResponseFactory** factory,
                                                     TRITONBACKEND_Request* request) {
  MAY_FAIL();
  ++request->factories;
  *factory = new TRITONBACKEND_ResponseFactory{request, request->answers};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryDelete(TRITONBACKEND_ResponseFactory* factory) {
  --factory->request->factories;
  delete factory;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactorySendFlags(TRITONBACKEND_ResponseFactory* factory,
                                                           const uint32_t flags) {
  MAY_FAIL();
  CHECK_EQUAL(flags, static_cast<uint32_t>(TRITONSERVER_RESPONSE_COMPLETE_FINAL));
  factory->answers->end();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryIsCancelled(TRITONBACKEND_ResponseFactory* factory, bool* cancelled) {
  MAY_FAIL();
  *cancelled = factory->answers->cancelled();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request) {
  MAY_FAIL();
  *response = new TRITONBACKEND_Response{request->answers, {}};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseNewFromFactory(TRITONBACKEND_Response** response,
                                                         TRITONBACKEND_ResponseFactory* factory) {
  MAY_FAIL();
  *response = new TRITONBACKEND_Response{factory->answers, {}};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response* response, TRITONBACKEND_Output** output,
                                                 const char* name, const TRITONSERVER_DataType, const int64_t* shape,
                                                 const uint32_t dims_count) {
  MAY_FAIL();
  *output = &response->outputs[name];
  (*output)->dims.assign(shape, shape + dims_count);
  return nullptr;
}
// As the server does it: an answer is the server's, also where it cannot be sent.
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response* response, const uint32_t flags,
                                               TRITONSERVER_Error* error) {
  const std::unique_ptr<TRITONBACKEND_Response> owned(response);
  MAY_FAIL();
  triton::Response sent{{}, error == nullptr ? "" : error->message, flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL};
  for (const auto& [name, output] : response->outputs) {
    const std::string bytes = output.gpu == nullptr ? output.cpu : element_bytes(output.gpu, output.bytes);
    sent.outputs[name] = {bytes, output.dims, output.gpu != nullptr};
  }
  response->answers->add(std::move(sent));
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseDelete(TRITONBACKEND_Response* response) {
  delete response;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output* output, void** buffer, const uint64_t size,
                                               TRITONSERVER_MemoryType* type, int64_t* type_id) {
  MAY_FAIL();
  CHECK_EQUAL(*type_id, 0);
  output->bytes = size;
  const bool on_gpu = *type == TRITONSERVER_MEMORY_GPU && gpu_memory;
  *type = on_gpu ? TRITONSERVER_MEMORY_GPU : TRITONSERVER_MEMORY_CPU;
  if (on_gpu && size > 0) {
    cudaMalloc(&output->gpu, size);
  } else {
    output->cpu.resize(size);
  }
  *buffer = size == 0 ? nullptr : on_gpu ? output->gpu : output->cpu.data();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                TRITONBACKEND_Request* request, const bool success,
                                                                const uint64_t a, const uint64_t b, const uint64_t c,
                                                                const uint64_t d) {
  CHECK(instance->model != nullptr && request->answers != nullptr && a <= b && b <= c && c <= d);
  count(success ? &triton::Reports::well : &triton::Reports::failed);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                     const uint64_t batch, const uint64_t a,
                                                                     const uint64_t b, const uint64_t c,
                                                                     const uint64_t d) {
  CHECK(instance->model != nullptr && batch == 1 && a <= b && b <= c && c <= d);
  count(&triton::Reports::executions);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsNew(
    TRITONBACKEND_ModelInstanceResponseStatistics** statistics) {
  MAY_FAIL();
  *statistics = new TRITONBACKEND_ModelInstanceResponseStatistics{};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsDelete(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics) {
  delete statistics;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, TRITONBACKEND_ModelInstance* instance) {
  statistics->instance = instance;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, TRITONBACKEND_ResponseFactory* factory) {
  statistics->factory = factory;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, uint64_t at) {
  statistics->start = at;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, uint64_t at) {
  statistics->output = at;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, uint64_t at) {
  statistics->end = at;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceResponseStatisticsSetError(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics, TRITONSERVER_Error* error) {
  statistics->failed = error != nullptr;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportResponseStatistics(
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics) {
  MAY_FAIL();
  CHECK(statistics->instance->model != nullptr && statistics->factory->request->answers != nullptr);
  CHECK(statistics->start <= statistics->output && statistics->output <= statistics->end);
  count(&triton::Reports::responses);
  if (statistics->failed) count(&triton::Reports::failed_responses);
  if (statistics->output > statistics->start) count(&triton::Reports::computed_responses);
  return nullptr;
}

}  // extern "C"
