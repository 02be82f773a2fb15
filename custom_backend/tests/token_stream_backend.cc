// The backend token_stream with its exported functions renamed, so that both backends fit into one program.
#define TRITONBACKEND_Initialize token_stream_Initialize
#define TRITONBACKEND_ModelInitialize token_stream_ModelInitialize
#define TRITONBACKEND_ModelFinalize token_stream_ModelFinalize
#define TRITONBACKEND_ModelInstanceInitialize token_stream_ModelInstanceInitialize
#define TRITONBACKEND_ModelInstanceFinalize token_stream_ModelInstanceFinalize
#define TRITONBACKEND_ModelInstanceExecute token_stream_ModelInstanceExecute

#include "token_stream/backend.cc"

#include "triton_stand_in.h"

const triton::Backend triton::kTokenStream{
    token_stream_Initialize,
    token_stream_ModelInitialize,
    token_stream_ModelFinalize,
    token_stream_ModelInstanceInitialize,
    token_stream_ModelInstanceFinalize,
    token_stream_ModelInstanceExecute,
};
