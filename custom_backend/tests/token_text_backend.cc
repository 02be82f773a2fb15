// The backend token_text with its exported functions renamed, so that both backends fit into one program.
#define TRITONBACKEND_Initialize token_text_Initialize
#define TRITONBACKEND_ModelInitialize token_text_ModelInitialize
#define TRITONBACKEND_ModelFinalize token_text_ModelFinalize
#define TRITONBACKEND_ModelInstanceInitialize token_text_ModelInstanceInitialize
#define TRITONBACKEND_ModelInstanceFinalize token_text_ModelInstanceFinalize
#define TRITONBACKEND_ModelInstanceExecute token_text_ModelInstanceExecute

#include "token_text/backend.cc"

#include "triton_stand_in.h"

const triton::Backend triton::kTokenText{
    token_text_Initialize,
    token_text_ModelInitialize,
    token_text_ModelFinalize,
    token_text_ModelInstanceInitialize,
    token_text_ModelInstanceFinalize,
    token_text_ModelInstanceExecute,
};
