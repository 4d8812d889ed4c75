// The few parts of onnxruntime's C API that this library uses, declared by ourselves.
//
// The C API is one table of function pointers, `OrtApi`, which only ever grows at its end: a
// function is found by its place in the table.  No package of the usual registries ships the
// official header, and a build must not need the network.  With -DSNNC_ORT_HEADER="<...>" naming
// the official header, every place and every member below is proved at compile time (see the end).
//
// We ask for API 18, which every onnxruntime from 1.18 on answers.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef SNNC_ORT_HEADER
#include SNNC_ORT_HEADER
#endif

// Opaque types of the API; they stay behind pointers.
struct OrtApi;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace snnc::ort {

constexpr std::uint32_t api_version = 18;

// Enumerations travel as C ints.
enum ErrorCode : int { fail = 1, invalid_argument = 2 };
enum ElementType : int {
  undefined = 0,
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  int32 = 6,
  int64 = 7,
  boolean = 9,
  float16 = 10
};
enum Characteristic : int { required = 0, variadic = 2 };
enum MemoryType : int { cpu_input = -2, device_default = 0 };

/// A function of the table: its place and its signature.
template <std::size_t table_place, typename Signature>
struct Function;

template <std::size_t table_place, typename Result, typename... Arguments>
struct Function<table_place, Result(Arguments...)> {
  static constexpr std::size_t place = table_place;

  static Result call(const OrtApi* api, Arguments... arguments) {
    using Pointer = Result (*)(Arguments...);
    return reinterpret_cast<const Pointer*>(api)[place](arguments...);
  }
};

using CreateStatus = Function<0, OrtStatus*(ErrorCode, const char* message)>;
using GetErrorMessage = Function<2, const char*(const OrtStatus*)>;
using CreateCustomOpDomain = Function<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)>;
using CustomOpDomain_Add = Function<27, OrtStatus*(OrtCustomOpDomain*, const struct CustomOp*)>;
using AddCustomOpDomain = Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Function<51, OrtStatus*(OrtValue*, void** data)>;
using GetTensorElementType =
    Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, ElementType*)>;
using GetDimensionsCount =
    Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t* rank)>;
using GetDimensions =
    Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t* shape, std::size_t)>;
using GetTensorTypeAndShape =
    Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttribute_int64 =
    Function<86, OrtStatus*(const OrtKernelInfo*, const char* name, std::int64_t*)>;
using KernelInfoGetAttribute_string =
    Function<87, OrtStatus*(const OrtKernelInfo*, const char* name, char*, std::size_t* size)>;
using KernelContext_GetInput =
    Function<90, OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>;
using KernelContext_GetOutput =
    Function<91, OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t* shape,
                            std::size_t rank, OrtValue**)>;
using ReleaseStatus = Function<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Function<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseCustomOpDomain = Function<101, void(OrtCustomOpDomain*)>;
using KernelInfoGetAttributeArray_int64 =
    Function<163, OrtStatus*(const OrtKernelInfo*, const char* name, std::int64_t*,
                             std::size_t* size)>;
using KernelContext_GetGPUComputeStream =
    Function<193, OrtStatus*(const OrtKernelContext*, void** stream)>;
using KernelInfo_GetNodeName =
    Function<244, OrtStatus*(const OrtKernelInfo*, char*, std::size_t* size)>;
using KernelInfoGetConstantInput_tensor =
    Function<249, OrtStatus*(const OrtKernelInfo*, std::size_t, int* is_constant, const OrtValue**)>;
using KernelContext_ParallelFor =
    Function<274, OrtStatus*(const OrtKernelContext*, void (*task)(void* data, std::size_t index),
                             std::size_t total, std::size_t batches, void* data)>;

/// What onnxruntime hands to `RegisterCustomOps`.
struct ApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

/// A custom operator at op version 18.  Members that stay null are optional.
struct CustomOp {
  std::uint32_t version = api_version;
  void* (*CreateKernel)(const CustomOp*, const OrtApi*, const OrtKernelInfo*) = nullptr;
  const char* (*GetName)(const CustomOp*) = nullptr;
  const char* (*GetExecutionProviderType)(const CustomOp*) = nullptr;
  ElementType (*GetInputType)(const CustomOp*, std::size_t) = nullptr;
  std::size_t (*GetInputTypeCount)(const CustomOp*) = nullptr;
  ElementType (*GetOutputType)(const CustomOp*, std::size_t) = nullptr;
  std::size_t (*GetOutputTypeCount)(const CustomOp*) = nullptr;
  void (*KernelCompute)(void*, OrtKernelContext*) = nullptr;
  void (*KernelDestroy)(void*) = nullptr;
  Characteristic (*GetInputCharacteristic)(const CustomOp*, std::size_t) = nullptr;
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, std::size_t) = nullptr;
  MemoryType (*GetInputMemoryType)(const CustomOp*, std::size_t) = nullptr;
  int (*GetVariadicInputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicInputHomogeneity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const CustomOp*) = nullptr;
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void**) = nullptr;
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*) = nullptr;
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*) = nullptr;
  int (*GetStartVersion)(const CustomOp*) = nullptr;
  int (*GetEndVersion)(const CustomOp*) = nullptr;
  std::size_t (*GetMayInplace)(int** inputs, int** outputs) = nullptr;
  void (*ReleaseMayInplace)(int* inputs, int* outputs) = nullptr;
  std::size_t (*GetAliasMap)(int** inputs, int** outputs) = nullptr;
  void (*ReleaseAliasMap)(int* inputs, int* outputs) = nullptr;
};

#ifdef SNNC_ORT_HEADER

static_assert(ORT_API_VERSION >= api_version);
static_assert(sizeof(ErrorCode) == sizeof(OrtErrorCode));
static_assert(int(fail) == int(ORT_FAIL));
static_assert(int(invalid_argument) == int(ORT_INVALID_ARGUMENT));
static_assert(int(undefined) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED));
static_assert(int(float32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
static_assert(int(uint8) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8));
static_assert(int(int8) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8));
static_assert(int(int32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32));
static_assert(int(int64) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
static_assert(int(float16) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16));
static_assert(int(required) == int(INPUT_OUTPUT_REQUIRED));
static_assert(int(variadic) == int(INPUT_OUTPUT_VARIADIC));
static_assert(int(cpu_input) == int(OrtMemTypeCPUInput));
static_assert(int(device_default) == int(OrtMemTypeDefault));

constexpr std::size_t pointer = sizeof(void*);
// clang-format off
static_assert(offsetof(OrtApi, CreateStatus) == pointer * CreateStatus::place);
static_assert(offsetof(OrtApi, GetErrorMessage) == pointer * GetErrorMessage::place);
static_assert(offsetof(OrtApi, CreateCustomOpDomain) == pointer * CreateCustomOpDomain::place);
static_assert(offsetof(OrtApi, CustomOpDomain_Add) == pointer * CustomOpDomain_Add::place);
static_assert(offsetof(OrtApi, AddCustomOpDomain) == pointer * AddCustomOpDomain::place);
static_assert(offsetof(OrtApi, GetTensorMutableData) == pointer * GetTensorMutableData::place);
static_assert(offsetof(OrtApi, GetTensorElementType) == pointer * GetTensorElementType::place);
static_assert(offsetof(OrtApi, GetDimensionsCount) == pointer * GetDimensionsCount::place);
static_assert(offsetof(OrtApi, GetDimensions) == pointer * GetDimensions::place);
static_assert(offsetof(OrtApi, GetTensorTypeAndShape) == pointer * GetTensorTypeAndShape::place);
static_assert(offsetof(OrtApi, KernelInfoGetAttribute_int64) == pointer * KernelInfoGetAttribute_int64::place);
static_assert(offsetof(OrtApi, KernelInfoGetAttribute_string) == pointer * KernelInfoGetAttribute_string::place);
static_assert(offsetof(OrtApi, KernelContext_GetInput) == pointer * KernelContext_GetInput::place);
static_assert(offsetof(OrtApi, KernelContext_GetOutput) == pointer * KernelContext_GetOutput::place);
static_assert(offsetof(OrtApi, ReleaseStatus) == pointer * ReleaseStatus::place);
static_assert(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo) == pointer * ReleaseTensorTypeAndShapeInfo::place);
static_assert(offsetof(OrtApi, ReleaseCustomOpDomain) == pointer * ReleaseCustomOpDomain::place);
static_assert(offsetof(OrtApi, KernelInfoGetAttributeArray_int64) == pointer * KernelInfoGetAttributeArray_int64::place);
static_assert(offsetof(OrtApi, KernelContext_GetGPUComputeStream) == pointer * KernelContext_GetGPUComputeStream::place);
static_assert(offsetof(OrtApi, KernelInfo_GetNodeName) == pointer * KernelInfo_GetNodeName::place);
static_assert(offsetof(OrtApi, KernelInfoGetConstantInput_tensor) == pointer * KernelInfoGetConstantInput_tensor::place);
static_assert(offsetof(OrtApi, KernelContext_ParallelFor) == pointer * KernelContext_ParallelFor::place);

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, GetApi));
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ApiBase, GetVersionString));

static_assert(offsetof(OrtCustomOp, version) == offsetof(CustomOp, version));
static_assert(offsetof(OrtCustomOp, CreateKernel) == offsetof(CustomOp, CreateKernel));
static_assert(offsetof(OrtCustomOp, GetName) == offsetof(CustomOp, GetName));
static_assert(offsetof(OrtCustomOp, GetExecutionProviderType) == offsetof(CustomOp, GetExecutionProviderType));
static_assert(offsetof(OrtCustomOp, GetInputType) == offsetof(CustomOp, GetInputType));
static_assert(offsetof(OrtCustomOp, GetInputTypeCount) == offsetof(CustomOp, GetInputTypeCount));
static_assert(offsetof(OrtCustomOp, GetOutputType) == offsetof(CustomOp, GetOutputType));
static_assert(offsetof(OrtCustomOp, GetOutputTypeCount) == offsetof(CustomOp, GetOutputTypeCount));
static_assert(offsetof(OrtCustomOp, KernelCompute) == offsetof(CustomOp, KernelCompute));
static_assert(offsetof(OrtCustomOp, KernelDestroy) == offsetof(CustomOp, KernelDestroy));
static_assert(offsetof(OrtCustomOp, GetInputCharacteristic) == offsetof(CustomOp, GetInputCharacteristic));
static_assert(offsetof(OrtCustomOp, GetOutputCharacteristic) == offsetof(CustomOp, GetOutputCharacteristic));
static_assert(offsetof(OrtCustomOp, GetInputMemoryType) == offsetof(CustomOp, GetInputMemoryType));
static_assert(offsetof(OrtCustomOp, GetVariadicInputMinArity) == offsetof(CustomOp, GetVariadicInputMinArity));
static_assert(offsetof(OrtCustomOp, GetVariadicInputHomogeneity) == offsetof(CustomOp, GetVariadicInputHomogeneity));
static_assert(offsetof(OrtCustomOp, GetVariadicOutputMinArity) == offsetof(CustomOp, GetVariadicOutputMinArity));
static_assert(offsetof(OrtCustomOp, GetVariadicOutputHomogeneity) == offsetof(CustomOp, GetVariadicOutputHomogeneity));
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == offsetof(CustomOp, CreateKernelV2));
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == offsetof(CustomOp, KernelComputeV2));
static_assert(offsetof(OrtCustomOp, InferOutputShapeFn) == offsetof(CustomOp, InferOutputShapeFn));
static_assert(offsetof(OrtCustomOp, GetStartVersion) == offsetof(CustomOp, GetStartVersion));
static_assert(offsetof(OrtCustomOp, GetEndVersion) == offsetof(CustomOp, GetEndVersion));
static_assert(offsetof(OrtCustomOp, GetMayInplace) == offsetof(CustomOp, GetMayInplace));
static_assert(offsetof(OrtCustomOp, ReleaseMayInplace) == offsetof(CustomOp, ReleaseMayInplace));
static_assert(offsetof(OrtCustomOp, GetAliasMap) == offsetof(CustomOp, GetAliasMap));
static_assert(offsetof(OrtCustomOp, ReleaseAliasMap) == offsetof(CustomOp, ReleaseAliasMap));
// Later members come after ours; `version` tells onnxruntime that they are not there.
static_assert(sizeof(OrtCustomOp) >= sizeof(CustomOp));
// clang-format on

#endif

}  // namespace snnc::ort
