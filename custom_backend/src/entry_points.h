// The functions of a backend that Triton finds by their names, but for the execution of requests. Each backend has a class
// `Instance` of its own, made from the model, the instance and the model's parameters, and includes this file below it.
#pragma once

#include <memory>

#include "triton.h"

using namespace token_stream;

extern "C" {

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* /*backend*/) {
  return guarded(check_api_version);
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] { hand_over(TRITONBACKEND_ModelSetState, model, std::make_unique<ModelParameters>(model)); });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] { delete held_by<ModelParameters>(TRITONBACKEND_ModelState, model); });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    const auto* parameters = held_by<ModelParameters>(TRITONBACKEND_ModelState, model);
    hand_over(TRITONBACKEND_ModelInstanceSetState, instance, std::make_unique<Instance>(model, instance, *parameters));
  });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete held_by<Instance>(TRITONBACKEND_ModelInstanceState, instance); });
}

}  // extern "C"
