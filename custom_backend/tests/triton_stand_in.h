// A stand-in for the server's side of Triton's C API, so that both backends run in a test program. It keeps Triton's
// rules of who frees what, really frees it (so that a sanitizer sees a late use), and counts what is left.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "triton_api.h"

namespace triton {

// What a backend's library exports.
struct Backend {
  TRITONSERVER_Error* (*initialize)(TRITONBACKEND_Backend*);
  TRITONSERVER_Error* (*model_initialize)(TRITONBACKEND_Model*);
  TRITONSERVER_Error* (*model_finalize)(TRITONBACKEND_Model*);
  TRITONSERVER_Error* (*instance_initialize)(TRITONBACKEND_ModelInstance*);
  TRITONSERVER_Error* (*instance_finalize)(TRITONBACKEND_ModelInstance*);
  TRITONSERVER_Error* (*execute)(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request**, uint32_t);
};

extern const Backend kTokenStream, kTokenText;

struct Tensor {
  std::string bytes;
  std::vector<int64_t> dims;
  bool on_gpu = false;
};

struct Response {
  std::map<std::string, Tensor> outputs;
  std::string error;
  bool final = false;
};

// The responses of one request. The test holds it; the request does, too.
class Answers {
 public:
  std::vector<Response> all() const;
  // Waits until the request was released, 60 s at most; then a check fails.
  void await_release();
  void await_count(size_t responses);
  void cancel();

  void add(Response response);  // the stand-in's own
  void end();
  void release();
  bool cancelled() const;
  size_t ends() const;

 private:
  template <typename Condition>
  void await(const Condition& condition);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Response> all_;
  size_t ends_ = 0;
  bool released_ = false, cancelled_ = false;
};

struct Parameter {
  std::string name;
  TRITONSERVER_ParameterType type;
  std::string bytes;  // the value as it lies in memory
};

Parameter parameter(const std::string& name, bool value);
Parameter parameter(const std::string& name, int64_t value);
Parameter parameter(const std::string& name, double value);
Parameter parameter(const std::string& name, const char* value);

struct Input {
  std::vector<std::string> parts;
  std::vector<int64_t> dims;
  bool on_gpu = false;
};

struct Call {
  std::map<std::string, Input> inputs;
  std::vector<std::string> outputs;
  std::vector<Parameter> parameters;
  const char* id = "a request";
};

// A model with one instance, loaded.
class Model {
 public:
  Model(const Backend& backend, const std::string& name, const std::map<std::string, std::string>& parameters,
        bool on_gpu = false);
  ~Model();

  // Hands the request to the instance, and returns what it will be answered with.
  std::shared_ptr<Answers> call(const Call& call);
  void unload();
  // What loading it ended with; empty if it is loaded.
  const std::string& error() const { return error_; }

 private:
  const Backend& backend_;
  std::unique_ptr<TRITONBACKEND_Model> model_;
  std::unique_ptr<TRITONBACKEND_ModelInstance> instance_;
  std::string error_;
  bool model_is_there_ = false, instance_is_there_ = false;
};

// How many of Triton's objects are there now, by kind, those that are there only; and how many were made ever.
std::map<std::string, size_t> left();
size_t made(const std::string& kind);

// Reports to the statistics: requests that went well, that failed, executions, responses; of the responses, those that
// failed, and those that took time before their output began.
struct Reports {
  size_t well, failed, executions, responses, failed_responses, computed_responses;
};
Reports reports();

std::vector<std::string> logs();
double gauge();

// Whether the server has memory on the GPU to give; it has CPU memory in any case.
void give_gpu_memory(bool gives);
// A function of the API by its name, which fails until this is set to "" again.
void fail(const std::string& function);
// The version of the API that the server says it has.
void say_version(uint32_t major, uint32_t minor);

}  // namespace triton
