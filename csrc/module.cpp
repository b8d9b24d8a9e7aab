// Facts about the build, as the compiler itself knows them. No torch header here: the pybind11 that torch
// bundles and torch's stable headers refuse to share a translation unit.
#include <pybind11/pybind11.h>

// setup.py defines these for what it has built.
#ifndef DETCAM_TORCH
#define DETCAM_TORCH nullptr
#endif
#ifndef DETCAM_CUDA_VERSION
#define DETCAM_CUDA_VERSION nullptr
#endif
#ifndef DETCAM_ARCHS
#define DETCAM_ARCHS nullptr
#endif

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

pybind11::dict build_facts() {
  pybind11::dict facts;
  facts["torch"] = static_cast<const char*>(DETCAM_TORCH);
  facts["compiler"] = kCompiler;
  facts["cuda_version"] = static_cast<const char*>(DETCAM_CUDA_VERSION);
  facts["archs"] = static_cast<const char*>(DETCAM_ARCHS);
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What the compiled kernels were built with.";
  module.def(
      "build_facts", &build_facts,
      "The torch release, compiler, CUDA release and architectures of this build; None where not built.");
}
