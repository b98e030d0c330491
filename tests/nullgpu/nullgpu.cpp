// A CUDA runtime and driver that compute nothing: memory, copies, streams, events, captures and graphs are book-kept,
// kernels only counted. One library takes the place of every CUDA function that torch calls, because it is loaded first.
//
//   counters, trace, complaints    what was called; what a real device would have refused
//   device memory                  allocations in a range that the host cannot touch, and its twin that copies use
//   streams, events, captures      where CUDA's rules for captures are kept
//   graphs, copies, device, kernels, driver, cuBLAS
//   cudnn.inc, cupti.inc           cuDNN's backend API; the profiler's records
//   blas.inc                       written by build.sh: a line BLAS(name) for every other cuBLAS function torch imports
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cupti_runtime_cbid.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

// A function of any signature under the name of a CUDA function. The label keeps it apart from the header's declaration.
#define ANY(name, ...) API int null_##name(__VA_ARGS__) __asm__(#name); int null_##name(__VA_ARGS__)
#define ZERO(name) ANY(name, ...) { return 0; }  // does nothing, succeeds
#define LACKS(name) ANY(name, ...) { return cudaErrorNotSupported; }  // the driver's code is the same number

// ---------------------------------------------------------------- counters, trace, complaints
struct Counter { const char* name; long n; Counter* next; };
static Counter* counters;
static std::recursive_mutex mutex;
static FILE* trace_file;
using Lock = std::lock_guard<std::recursive_mutex>;

#define COUNT(what) do { static Counter counter; bump(counter, what); } while (0)
#define CALL() Lock lock(mutex); COUNT(__func__); trace("%s", __func__)

static void bump(Counter& counter, const char* name) {
  Lock lock(mutex);
  if (!counter.name) counter.name = name, counter.next = counters, counters = &counter;
  counter.n++;
}

static void trace(const char* format, ...) {
  if (!trace_file) return;
  va_list values; va_start(values, format); vfprintf(trace_file, format, values); va_end(values);
  fputc('\n', trace_file);
}

API void nullgpu_trace(const char* path) {  // every call from here on goes to this file; NULL ends it
  Lock lock(mutex);
  if (trace_file) fclose(trace_file);
  trace_file = path && *path ? fopen(path, "a") : nullptr;
}

API void nullgpu_note(const char* text) { Lock lock(mutex); trace("--- %s", text); }

API void nullgpu_counters(char* buffer, size_t size) {
  Lock lock(mutex); size_t used = 0; *buffer = 0;
  for (Counter* c = counters; c && used < size; c = c->next)
    used += snprintf(buffer + used, size - used, "%s %ld\n", c->name, c->n);
}

static FILE* open_for(const char* variable) {
  const char* path = getenv(variable);
  return path ? fopen(path, "a") : nullptr;
}

static void complain(const char* format, ...) {  // something that a device would refuse, or that is suspicious
  static int complaints; char text[500];
  va_list values; va_start(values, format); vsnprintf(text, sizeof text, format, values); va_end(values);
  trace("!!! %s", text);
  if (complaints++ >= 200) return;
  fprintf(stderr, "NULLGPU: %s\n", text);
  if (getenv("NULLGPU_BACKTRACE")) { void* frames[40]; backtrace_symbols_fd(frames, backtrace(frames, 40), 2); }
  if (FILE* f = open_for("NULLGPU_COMPLAINTS")) fprintf(f, "pid %d: %s\n", getpid(), text), fclose(f);
}

__attribute__((constructor)) static void start() {
  nullgpu_trace(getenv("NULLGPU_TRACE"));
  atexit([] {
    static char buffer[1 << 16];
    nullgpu_counters(buffer, sizeof buffer);
    if (FILE* f = *buffer ? open_for("NULLGPU_COUNTERS") : nullptr) fprintf(f, "== pid %d\n%s", getpid(), buffer), fclose(f);
  });
}

// ---------------------------------------------------------------- errors
static const struct { int code; const char *name, *text; } errors[] = {
#define ERROR(name, text) {name, #name, text},
  ERROR(cudaSuccess, "no error")
  ERROR(cudaErrorInvalidValue, "invalid argument")
  ERROR(cudaErrorMemoryAllocation, "out of memory")
  ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected")
  ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument")
  ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle")
  ERROR(cudaErrorNotSupported, "operation not supported")
  ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")
  ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")
  ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences")
  ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")
  ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")
  ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")
  ERROR(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream")
  ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream")
  ERROR(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread")
};
static thread_local cudaError_t last_error = cudaSuccess;

static cudaError_t fail(cudaError_t e) {  // what cudaGetLastError will say
  if (e) last_error = e, trace("    -> error %d", (int)e);
  return e;
}

API const char* cudaGetErrorString(cudaError_t e) {
  for (auto& x : errors) if (x.code == e) return x.text;
  return "unknown error (null GPU)";
}
API const char* cudaGetErrorName(cudaError_t e) {
  for (auto& x : errors) if (x.code == e) return x.name;
  return "cudaErrorUnknown";
}
API cudaError_t cudaGetLastError() { auto e = last_error; last_error = cudaSuccess; return e; }
API cudaError_t cudaPeekAtLastError() { return last_error; }

// ---------------------------------------------------------------- device memory
// Device pointers lie in a reserved range without access (the host's reading one is a SIGSEGV); what they hold lies at the
// same offset in a second, sparse mapping. Freed memory is handed back to the system.
using Ranges = std::map<char*, size_t>;
static const size_t TOTAL = 80ull << 30, CONTEXT = 2ull << 30;  // an H100's; what a context takes of it
static char *device_base, *twin_base;
static int memory_file = -1;
static Ranges &allocated = *new Ranges, &pinned = *new Ranges;  // never destroyed: threads may outlive the exit handlers
static size_t allocated_bytes;

static bool on_device(const void* p) { return device_base && p >= device_base && p < device_base + TOTAL; }
static char* readable(const void* p) { return on_device(p) ? (char*)p - device_base + twin_base : (char*)p; }

static const Ranges::value_type* find(const Ranges& ranges, const void* p) {
  auto it = ranges.upper_bound((char*)p);
  if (it == ranges.begin()) return nullptr;
  --it;
  return (char*)p < it->first + it->second ? &*it : nullptr;
}

static void* allocate(size_t size) {  // the first gap that is wide enough
  if (!device_base) {
    memory_file = memfd_create("nullgpu", 0);
    if (memory_file < 0 || ftruncate(memory_file, TOTAL)) abort();
    device_base = (char*)mmap(nullptr, TOTAL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    twin_base = (char*)mmap(nullptr, TOTAL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_file, 0);
    if (device_base == MAP_FAILED || twin_base == MAP_FAILED) abort();
  }
  size = size ? (size + 511) & ~511ull : 512;
  char* at = device_base;
  for (auto& [p, n] : allocated) { if ((size_t)(p - at) >= size) break; at = p + n; }
  if (at + size > device_base + TOTAL - CONTEXT) return nullptr;
  allocated[at] = size; allocated_bytes += size;
  return at;
}

static void fill(void* p, int value, size_t n) {  // whole pages of zeros are punched out
  char* at = readable(p);
  size_t first = (at - twin_base + 4095) & ~4095ull, last = (at - twin_base + n) & ~4095ull;
  if (value || n <= 1 << 20 || !on_device(p)) { memset(at, value, n); return; }
  fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, last - first);
  memset(at, 0, twin_base + first - at); memset(twin_base + last, 0, at + n - (twin_base + last));
}

static void move(void* dst, const void* src, size_t n) {
  // A kernel's results are never there. Small ones that go to the host (actions, .item()) are 0, so that they are valid.
  static bool stale = getenv("NULLGPU_STALE");
  if (on_device(src) && !on_device(dst) && n <= 8192 && !stale) memset(dst, 0, n);
  else memmove(readable(dst), readable(src), n);
}

// ---------------------------------------------------------------- streams, events, captures
enum Kind { KERNEL, COPY, SET, OTHER };
struct Node { Kind kind; void* dst; const void* src; size_t n; int value; const char* name; dim3 grid, block; };
struct Graph { std::vector<Node> nodes; std::map<std::string, int> names; };
struct Stream;
struct Capture {
  unsigned long long id; int mode; std::thread::id thread; Stream* origin; Graph* graph; bool invalid;
  std::set<Stream*> members;
};
struct Stream {
  unsigned magic = 0x57, flags = 0; int priority = 0; std::shared_ptr<Capture> capture;
  long queued = 0, joined = 0;  // how much of this capture's work another stream has waited for
};
struct Event {
  unsigned flags; bool recorded, captured; std::weak_ptr<Capture> capture; Stream* stream; long at; double when;
};
static Stream &legacy_stream = *new Stream, &per_thread_stream = *new Stream;
static auto& captures = *new std::vector<std::shared_ptr<Capture>>;
static thread_local int thread_mode = cudaStreamCaptureModeGlobal;

// the profiler's records, in cupti.inc
static uint32_t record_call(int cbid);
static void record_kernel(const char* name, dim3 grid, dim3 block, uint32_t id);
static void record_copy(const void* dst, const void* src, size_t n, uint32_t id);
static void record_set(size_t n, int value, uint32_t id);
#define RECORD(name) record_call(CUPTI_RUNTIME_TRACE_CBID_##name)

static Stream* stream_of(cudaStream_t s) {
  return !s || s == cudaStreamLegacy ? &legacy_stream : s == cudaStreamPerThread ? &per_thread_stream : (Stream*)s;
}

static cudaError_t spoil(const char* what, cudaError_t e = cudaErrorStreamCaptureUnsupported) {
  for (auto& c : captures) {
    if (!c->invalid) complain("%s: not permitted while a stream is capturing; the capture is invalidated", what);
    c->invalid = true;
  }
  return fail(e);
}

// A call that CUDA names potentially unsafe: refused in this thread's own capture unless that is relaxed, and in anybody's
// global one, unless this thread has exchanged its mode for a milder one. It invalidates the capture.
static bool unsafe(const char* what) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  for (auto& c : captures) {
    bool own = c->thread == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
    bool global = c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (own || global) { spoil(what); return true; }
  }
  return false;
}
#define NOT_IN_CAPTURE() if (unsafe(__func__)) return cudaErrorStreamCaptureUnsupported
#define NOT_ON_CAPTURING(stream) if (stream_of(stream)->capture) return spoil(__func__)

// Work for a stream is recorded (graph is set), refused, or to be done now.
static cudaError_t enqueue(cudaStream_t stream, const char* what, Graph*& graph) {
  Stream* s = stream_of(stream);
  graph = nullptr;
  if (s->magic != 0x57) { complain("%s: not a stream", what); return fail(cudaErrorInvalidResourceHandle); }
  s->queued++;
  if (s->capture) {
    if (s->capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
    graph = s->capture->graph;
    graph->names[what]++;
    return cudaSuccess;
  }
  for (auto& c : captures) {
    if (s == &legacy_stream)  // it waits for every stream that was not made non-blocking
      for (Stream* m : c->members)
        if (!(m->flags & cudaStreamNonBlocking)) return spoil(what, cudaErrorStreamCaptureImplicit);
    if (c->thread == std::this_thread::get_id() && !c->invalid)  // legal, but seldom meant
      complain("%s on a stream that is not capturing, from the thread that captures: executed now, not recorded", what);
  }
  return cudaSuccess;
}

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  CALL(); auto* x = new Stream; x->flags = flags; x->priority = priority; *s = (cudaStream_t)x; return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
ZERO(cudaStreamDestroy)  // a few bytes are lost
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int* p) { *p = stream_of(s)->priority; return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) { *low = 0; *high = -5; return cudaSuccess; }
API cudaError_t cudaStreamQuery(cudaStream_t s) { CALL(); NOT_ON_CAPTURING(s); NOT_IN_CAPTURE(); return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  CALL(); RECORD(cudaStreamSynchronize_v3020); NOT_ON_CAPTURING(s); NOT_IN_CAPTURE(); return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() {  // refused in every mode, from every thread
  CALL(); RECORD(cudaDeviceSynchronize_v3020); return captures.empty() ? cudaSuccess : spoil(__func__);
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  CALL(); auto* x = new Event(); x->flags = flags; *e = (cudaEvent_t)x; return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t e) { CALL(); delete (Event*)e; return cudaSuccess; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  CALL(); Graph* g; if (auto e = enqueue(stream, "event record", g)) return e;
  auto* x = (Event*)event; Stream* s = stream_of(stream);
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  x->recorded = true; x->stream = s; x->at = s->queued; x->when = t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
  x->captured = g && !(flags & cudaEventRecordExternal); x->capture.reset();
  if (x->captured) x->capture = s->capture; else if (g) g->nodes.push_back({OTHER});
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, 0); }
API cudaError_t cudaEventQuery(cudaEvent_t event) {
  CALL(); auto* x = (Event*)event;
  if (x->captured && x->capture.lock()) return spoil("cudaEventQuery of a captured event", cudaErrorCapturedEvent);
  NOT_IN_CAPTURE(); return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  CALL(); RECORD(cudaEventSynchronize_v3020);
  if (((Event*)e)->captured) return spoil("cudaEventSynchronize of a captured event", cudaErrorCapturedEvent);
  NOT_IN_CAPTURE(); return cudaSuccess;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  CALL(); auto *from = (Event*)a, *to = (Event*)b;
  for (auto* x : {from, to}) {
    if (!x->recorded || x->flags & cudaEventDisableTiming) return fail(cudaErrorInvalidResourceHandle);
    if (x->captured) return fail(cudaErrorCapturedEvent);
  }
  *ms = to->when - from->when > 1e-3 ? to->when - from->when : 1e-3; return cudaSuccess;
}

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  CALL(); auto* x = (Event*)event; Stream* s = stream_of(stream);
  if (!x->recorded) return cudaSuccess;
  if (auto c = x->captured ? x->capture.lock() : nullptr) {  // the waiting stream joins the capture
    if (s == &legacy_stream) return spoil("the legacy stream's wait for a capture", cudaErrorStreamCaptureImplicit);
    if (s->capture && s->capture != c) return spoil("a wait for another capture", cudaErrorStreamCaptureMerge);
    if (!s->capture) { s->capture = c; c->members.insert(s); s->queued = s->joined = 0; }
    if (x->stream->joined < x->at) x->stream->joined = x->at;
    s->queued++;
  } else if (x->captured) {
    complain("a wait for an event whose last record was captured in a finished graph"); return fail(cudaErrorCapturedEvent);
  } else if (s->capture) {
    if (!(flags & cudaEventWaitExternal)) return spoil("a wait for work outside the capture", cudaErrorStreamCaptureIsolation);
    s->capture->graph->nodes.push_back({OTHER});
  }
  return cudaSuccess;
}

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  CALL(); Stream* s = stream_of(stream); static unsigned long long made;
  if (s == &legacy_stream) { complain("capture of the legacy stream"); return fail(cudaErrorStreamCaptureUnsupported); }
  if (s->capture) return fail(cudaErrorIllegalState);
  captures.push_back(s->capture = std::make_shared<Capture>(
    Capture{++made, mode, std::this_thread::get_id(), s, new Graph, false, {s}}));
  return cudaSuccess;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  CALL(); Stream* s = stream_of(stream); auto c = s->capture; *graph = nullptr;
  if (!c) return fail(cudaErrorIllegalState);
  if (c->origin != s) return fail(cudaErrorStreamCaptureUnmatched);
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id()) {
    complain("capture ended on another thread"); return fail(cudaErrorStreamCaptureWrongThread);
  }
  bool unjoined = false;
  for (Stream* m : c->members) { unjoined |= m != s && m->queued > m->joined; m->capture.reset(); }
  for (size_t i = 0; i < captures.size(); i++) if (captures[i] == c) { captures.erase(captures.begin() + i); break; }
  if (c->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (unjoined) { complain("capture has unjoined work"); return fail(cudaErrorStreamCaptureUnjoined); }
  *graph = (cudaGraph_t)c->graph;
  if (FILE* f = open_for("NULLGPU_GRAPHS")) {
    int kinds[4] = {}; for (auto& n : c->graph->nodes) kinds[n.kind]++;
    fprintf(f, "graph: %d kernels, %d copies, %d memsets, %d other\n", kinds[KERNEL], kinds[COPY], kinds[SET], kinds[OTHER]);
    for (auto& [name, n] : c->graph->names) fprintf(f, "   %4d %s\n", n, name.c_str());
    fclose(f);
  }
  return cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  CALL(); auto& c = stream_of(stream)->capture;
  *status = !c ? cudaStreamCaptureStatusNone
          : c->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                         size_t* n) {
  auto& c = stream_of(stream)->capture;
  if (c && id) *id = c->id;
  if (c && graph) *graph = (cudaGraph_t)c->graph;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (n) *n = 0;
  return cudaStreamIsCapturing(stream, status);
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  int old = thread_mode; thread_mode = *mode; *mode = (enum cudaStreamCaptureMode)old; return cudaSuccess;
}

// ---------------------------------------------------------------- graphs
static auto& runnable = *new std::set<Graph*>;

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  CALL(); NOT_IN_CAPTURE();
  auto* x = new Graph(*(Graph*)graph); runnable.insert(x); *exec = (cudaGraphExec_t)x; return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t g) { CALL(); delete (Graph*)g; return cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) {
  CALL(); if (!runnable.erase((Graph*)g)) { complain("a graph is destroyed twice"); return fail(cudaErrorInvalidValue); }
  delete (Graph*)g; return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* n) {
  CALL(); auto& all = ((Graph*)graph)->nodes;
  if (!nodes) *n = all.size(); else for (size_t i = 0; i < *n; i++) nodes[i] = (cudaGraphNode_t)&all[i];
  return cudaSuccess;
}
API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t* n) {
  *n = 0; return cudaSuccess;
}
ZERO(cudaGraphDebugDotPrint)
LACKS(cudaGraphAddNode) LACKS(cudaGraphConditionalHandleCreate) LACKS(cudaStreamBeginCaptureToGraph)  // of torch 2.13: branches
LACKS(cudaStreamUpdateCaptureDependencies)
LACKS(cudaLibraryLoadData) LACKS(cudaLibraryUnload) LACKS(cudaLibraryGetKernel) LACKS(cudaKernelSetAttributeForDevice)

API cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {  // copies and memsets happen again
  CALL(); auto* x = (Graph*)exec; Graph* g;
  if (!runnable.count(x)) { complain("launch of a destroyed graph"); return fail(cudaErrorInvalidValue); }
  trace("    %zu nodes on %p", x->nodes.size(), (void*)stream);
  if (auto e = enqueue(stream, "graph launch", g)) return e;
  if (g) { g->nodes.push_back({OTHER}); return cudaSuccess; }
  uint32_t id = RECORD(cudaGraphLaunch_v10000);
  for (auto& n : x->nodes) {
    if (n.kind == KERNEL) record_kernel(n.name, n.grid, n.block, id);
    if (n.kind == COPY) { record_copy(n.dst, n.src, n.n, id); move(n.dst, n.src, n.n); }
    if (n.kind == SET) { record_set(n.n, n.value, id); fill(n.dst, n.value, n.n); }
  }
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  CALL(); Graph* g; if (auto e = enqueue(stream, "host function", g)) return e;
  if (g) g->nodes.push_back({OTHER}); else function(data);
  return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t function, void* data, unsigned) {
  CALL(); NOT_ON_CAPTURING(s); function(s, cudaSuccess, data); return cudaSuccess;
}

// ---------------------------------------------------------------- memory, copies
API cudaError_t cudaMalloc(void** p, size_t n) {
  CALL(); trace("    %zu bytes", n); RECORD(cudaMalloc_v3020); NOT_IN_CAPTURE();
  *p = allocate(n); return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
API cudaError_t cudaFree(void* p) {
  CALL(); if (!p) return cudaSuccess;
  NOT_IN_CAPTURE(); auto it = allocated.find((char*)p);
  if (it == allocated.end()) { complain("cudaFree of %p, which is not allocated", p); return fail(cudaErrorInvalidValue); }
  fill(p, 0, it->second); allocated_bytes -= it->second; allocated.erase(it); return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  CALL(); trace("    %zu bytes", n); NOT_IN_CAPTURE();
  *p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*p == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  pinned[(char*)*p] = n; return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* p) {
  CALL(); NOT_IN_CAPTURE(); auto it = pinned.find((char*)p); if (it == pinned.end()) return fail(cudaErrorInvalidValue);
  munmap(p, it->second); pinned.erase(it); return cudaSuccess;
}
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  CALL(); NOT_IN_CAPTURE(); pinned[(char*)p] = n; return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* p) { CALL(); pinned.erase((char*)p); return cudaSuccess; }
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
  CALL(); memset(a, 0, sizeof *a);
  if (on_device(p) && !find(allocated, p)) complain("pointer %p to freed device memory", p);
  a->type = on_device(p) ? cudaMemoryTypeDevice : find(pinned, p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (a->type == cudaMemoryTypeUnregistered) a->device = cudaInvalidDeviceId; else a->devicePointer = (void*)p;
  if (a->type != cudaMemoryTypeDevice) a->hostPointer = (void*)p;
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  CALL(); *total = TOTAL - (1ull << 30); *free = TOTAL - CONTEXT - allocated_bytes; return cudaSuccess;
}

static cudaError_t copy(void* dst, const void* src, size_t n, cudaStream_t stream, bool sync) {
  bool from = on_device(src), to = on_device(dst);
  for (auto* p : {(const void*)dst, src})
    if (auto* range = find(allocated, p); on_device(p) && (!range || (char*)p + n > range->first + range->second)) {
      complain("copy of %zu bytes outside of an allocation", n); return fail(cudaErrorInvalidValue);
    }
  bool pageable = (!from && !find(pinned, src)) || (!to && !find(pinned, dst));
  const char* way = from && to ? "device to device" : from ? "device to host" : to ? "host to device" : "host to host";
  if (from && to) COUNT("  copy device to device");
  else if (from) { if (pageable) COUNT("  copy device to host, pageable"); else COUNT("  copy device to host, pinned"); }
  else if (to) { if (pageable) COUNT("  copy host to device, pageable"); else COUNT("  copy host to device, pinned"); }
  trace("    %zu bytes %s%s on %p", n, way, pageable ? ", pageable" : "", (void*)stream);
  uint32_t id = sync ? RECORD(cudaMemcpy_v3020) : RECORD(cudaMemcpyAsync_v3020);
  Graph* g; if (auto e = enqueue(stream, way, g)) return e;
  if (!g) { record_copy(dst, src, n, id); move(dst, src, n); return cudaSuccess; }
  if (sync) return spoil("cudaMemcpy");
  if (pageable) complain("a copy of %zu bytes of pageable memory is captured", n);
  g->nodes.push_back({COPY, dst, src, n}); return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t n, enum cudaMemcpyKind, cudaStream_t s) {
  CALL(); return copy(dst, src, n, s, false);
}
API cudaError_t cudaMemcpyPeerAsync(void* dst, int, const void* src, int, size_t n, cudaStream_t s) {
  CALL(); return copy(dst, src, n, s, false);
}
API cudaError_t cudaMemcpy(void* dst, const void* src, size_t n, enum cudaMemcpyKind) {
  CALL(); NOT_IN_CAPTURE(); return copy(dst, src, n, nullptr, true);
}
API cudaError_t cudaMemcpy2DAsync(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width, size_t height,
                                  enum cudaMemcpyKind, cudaStream_t s) {
  CALL();
  for (size_t i = 0; i < height; i++)
    if (auto e = copy((char*)dst + i * dst_pitch, (char*)src + i * src_pitch, width, s, false)) return e;
  return cudaSuccess;
}
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, enum cudaMemcpyKind) {
  CALL(); NOT_IN_CAPTURE(); return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s) {
  CALL(); Graph* g; if (auto e = enqueue(s, "memset", g)) return e;
  if (!find(allocated, p) && !find(pinned, p)) { complain("memset of pageable memory"); return fail(cudaErrorInvalidValue); }
  uint32_t id = RECORD(cudaMemsetAsync_v3020);
  if (g) g->nodes.push_back({SET, p, nullptr, n, value}); else { record_set(n, value, id); fill(p, value, n); }
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* p, int value, size_t n) { NOT_IN_CAPTURE(); return cudaMemsetAsync(p, value, n, nullptr); }
LACKS(cudaIpcCloseMemHandle) LACKS(cudaIpcGetEventHandle) LACKS(cudaIpcGetMemHandle)
LACKS(cudaIpcOpenEventHandle) LACKS(cudaIpcOpenMemHandle)

// ---------------------------------------------------------------- device: an H100
static int attribute(int number) {  // by the number of cudaDeviceAttr; the others are 0
  static const std::unordered_map<int, int> values = {
    {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536}, {10, 32},
    {11, 2147483647}, {12, 65536}, {13, 1980000}, {14, 512}, {15, 1}, {16, 132}, {19, 1}, {31, 1}, {33, 0x19}, {36, 2619000},
    {37, 5120}, {38, 50 << 20}, {39, 2048}, {40, 3}, {41, 1}, {75, 9}, {78, 1}, {79, 1}, {80, 1}, {81, 233472}, {82, 65536},
    {83, 1}, {86, 1}, {87, 2}, {88, 1}, {89, 1}, {90, 1}, {91, 1}, {95, 1}, {97, 232448}, {102, 1}, {106, 32},
    {108, 134213632}, {111, 1024}, {115, 1}, {119, 3}, {120, 1}, {121, 1}, {123, 1},
  };
  auto it = values.find(number);
  return it == values.end() ? 0 : it->second;
}
static bool hidden() { const char* v = getenv("CUDA_VISIBLE_DEVICES"); return v && (!*v || *v == '-'); }

API cudaError_t cudaGetDeviceCount(int* n) { *n = !hidden(); return *n ? cudaSuccess : fail(cudaErrorNoDevice); }
API cudaError_t cudaGetDevice(int* d) { COUNT(__func__); *d = 0; return cudaSuccess; }
API cudaError_t cudaSetDevice(int d) { COUNT(__func__); return d ? fail(cudaErrorInvalidDevice) : cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int) { *v = attribute(a); return cudaSuccess; }
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p); strcpy(p->name, "NVIDIA Null H100");
  p->totalGlobalMem = TOTAL - (1ull << 30); p->major = 9; p->warpSize = 32; p->multiProcessorCount = 132;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = 232448; p->reservedSharedMemPerBlock = 1024;
  p->sharedMemPerMultiprocessor = 233472; p->regsPerBlock = p->regsPerMultiprocessor = p->totalConstMem = 65536;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048; p->maxBlocksPerMultiProcessor = 32;
  p->memPitch = p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->textureAlignment = 512; p->texturePitchAlignment = 32; p->memoryBusWidth = 5120; p->l2CacheSize = 50 << 20;
  p->asyncEngineCount = 3; p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
  p->streamPrioritiesSupported = p->cooperativeLaunch = p->memoryPoolsSupported = p->clusterLaunch = 1;
  return cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) { snprintf(s, n, "0000:00:00.0"); return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) { *p = (cudaMemPool_t)8; return cudaSuccess; }
API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void* v) {
  *(uint64_t*)v = 0; return cudaSuccess;
}
ZERO(cudaDeviceEnablePeerAccess) ZERO(cudaMemPoolSetAttribute) ZERO(cudaMemPoolSetAccess) ZERO(cudaMemPoolTrimTo)
ZERO(cudaProfilerStart) ZERO(cudaProfilerStop)

// ---------------------------------------------------------------- kernels
struct Kernel { unsigned magic; std::string name; };
static auto& kernels = *new std::unordered_map<const void*, Kernel*>;  // by the address that the host's code calls
static auto& variables = *new std::unordered_map<const void*, std::pair<size_t, void*>>;  // size, place

static cudaError_t launch(const char* name, cudaStream_t stream, dim3 grid = 1, dim3 block = 1) {
  COUNT("kernels of every kind"); trace("    %s on %p", name, (void*)stream);
  size_t threads = (size_t)block.x * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !threads || threads > 1024 || block.z > 64) {
    complain("%s: grid %u %u %u block %u %u %u", name, grid.x, grid.y, grid.z, block.x, block.y, block.z);
    return fail(cudaErrorInvalidConfiguration);
  }
  Graph* g; if (auto e = enqueue(stream, name, g)) return e;
  uint32_t id = RECORD(cudaLaunchKernel_v7000);
  if (g) g->nodes.push_back({KERNEL, nullptr, nullptr, 0, 0, strdup(name), grid, block});
  else record_kernel(name, grid, block, id);
  return cudaSuccess;
}
static const char* name_of(const void* f) {
  auto it = kernels.find(f);
  auto* kernel = it == kernels.end() ? (Kernel*)f : it->second;
  return kernel && kernel->magic == 0x4e ? kernel->name.c_str() : "kernel ?";
}

API void** __cudaRegisterFatBinary(void*) { static void* handle[4]; return handle; }
ZERO(__cudaRegisterFatBinaryEnd) ZERO(__cudaUnregisterFatBinary)
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterFunction(void**, const char* key, char*, const char* name, int, void*, void*, void*, void*, int*) {
  Lock lock(mutex); auto*& kernel = kernels[key]; if (!kernel) kernel = new Kernel{0x4e, name};
}
API void __cudaRegisterVar(void**, char* key, char*, const char*, int, size_t size, int, int) {
  Lock lock(mutex); variables[key] = {size, nullptr};
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* key) {
  Lock lock(mutex); auto it = kernels.find(key); if (it == kernels.end()) return fail(cudaErrorInvalidDeviceFunction);
  *kernel = (cudaKernel_t)it->second; return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void**, size_t, cudaStream_t s) {
  CALL(); return launch(name_of(f), s, grid, block);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t s) {
  return cudaLaunchKernel(k, grid, block, arguments, shared, s);
}
API cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t s) {
  return cudaLaunchKernel(f, grid, block, args, shared, s);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** arguments) {
  return cudaLaunchKernel(f, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}
static thread_local struct { dim3 grid, block; size_t shared; cudaStream_t stream; } pushed;  // by kernel<<<...>>>
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
  pushed = {grid, block, shared, stream}; return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid; *block = pushed.block; *shared = pushed.shared; *(cudaStream_t*)stream = pushed.stream;
  return cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->binaryVersion = a->ptxVersion = 90;
  a->maxDynamicSharedSizeBytes = 49152; return cudaSuccess;
}
ZERO(cudaFuncSetAttribute)
API cudaError_t cudaGetSymbolAddress(void** p, const void* key) {
  Lock lock(mutex); auto& [size, place] = variables[key]; if (!place) place = allocate(size); *p = place; return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int block, size_t) {
  *n = block <= 0 ? 2 : block < 64 ? 32 : 2048 / block; return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int block, size_t m, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, block, m);
}

// ---------------------------------------------------------------- driver: Triton's and what torch asks it for
static int context;
static CUresult driver(cudaError_t e) { return (CUresult)(int)e; }

API CUresult cuDriverGetVersion(int* v) { *v = CUDA_VERSION; return CUDA_SUCCESS; }
ZERO(cuInit) ZERO(cuDevicePrimaryCtxRelease_v2) ZERO(cuCtxSetCurrent) ZERO(cuCtxPushCurrent_v2) ZERO(cuCtxSetLimit)
ZERO(cuModuleUnload) ZERO(cuFuncSetAttribute) ZERO(cuFuncSetCacheConfig) ZERO(cuTensorMapEncodeTiled)
LACKS(cuLinkCreate_v2) LACKS(cuLinkAddData_v2) LACKS(cuLinkComplete) LACKS(cuGetExportTable)
API CUresult cuGetErrorString(CUresult e, const char** s) { *s = cudaGetErrorString((cudaError_t)e); return CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult e, const char** s) { *s = cudaGetErrorName((cudaError_t)e); return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* d, int i) { *d = 0; return i ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* n) { *n = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) { *v = attribute(a); return CUDA_SUCCESS; }
API CUresult cuDeviceGetUuid_v2(CUuuid* u, CUdevice) { memset(u, 7, sizeof *u); return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  if (flags) *flags = 0;
  *active = 1; return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { *c = (CUcontext)&context; return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* c) { *c = (CUcontext)&context; return CUDA_SUCCESS; }
API CUresult cuCtxPopCurrent_v2(CUcontext* c) { if (c) *c = (CUcontext)&context; return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* d) { *d = 0; return CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t* v, CUlimit) { *v = 1024; return CUDA_SUCCESS; }
API CUresult cuCtxSynchronize() { return driver(cudaDeviceSynchronize()); }
API CUresult cuModuleLoadData(CUmodule* m, const void*) {
  CALL(); if (unsafe(__func__)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *m = (CUmodule)&context; return CUDA_SUCCESS;
}
API CUresult cuModuleLoadDataEx(CUmodule* m, const void* d, unsigned, CUjit_option*, void**) { return cuModuleLoadData(m, d); }
API CUresult cuModuleLoad(CUmodule* m, const char* path) {
  return access(path, R_OK) ? CUDA_ERROR_FILE_NOT_FOUND : cuModuleLoadData(m, path);
}
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) {
  *f = (CUfunction) new Kernel{0x4e, name}; return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0; return CUDA_SUCCESS;
}
API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned, CUstream s, void**, void**) {
  CALL(); return driver(launch(((Kernel*)f)->name.c_str(), s, dim3(gx, gy, gz), dim3(bx, by, bz)));
}
API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                       unsigned bz, unsigned shared, CUstream s, void** p) {
  return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, s, p, nullptr);
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** p, void** x) {
  return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                        c->sharedMemBytes, c->hStream, p, x);
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction f, int block, size_t m) {
  return driver(cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, block, m));
}
API CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) { *n = 16; return CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void* out, CUpointer_attribute a, CUdeviceptr p) {
  CALL(); bool device = on_device((void*)p);
  if (!device && !find(pinned, (void*)p)) { complain("a kernel is given pageable memory"); return CUDA_ERROR_INVALID_VALUE; }
  if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr*)out = p;
  else if (a == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) *(unsigned*)out = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  else if (a == CU_POINTER_ATTRIBUTE_CONTEXT) *(CUcontext*)out = (CUcontext)&context;
  else if (a == CU_POINTER_ATTRIBUTE_BUFFER_ID) *(uint64_t*)out = 1;
  else *(int*)out = 0;
  return CUDA_SUCCESS;
}
API CUresult cuStreamSynchronize(CUstream s) { return driver(cudaStreamSynchronize(s)); }
API CUresult cuMemsetD32Async(CUdeviceptr p, unsigned, size_t n, CUstream s) {
  return driver(cudaMemsetAsync((void*)p, 0, 4 * n, s));
}

static CUresult lacking() { complain("a driver function that the null GPU lacks"); return CUDA_ERROR_NOT_SUPPORTED; }
static void* entry(const char* name) {
  for (auto suffix : {"", "_v2", "_v3"}) if (void* f = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str())) return f;
  trace("driver function missing: %s", name);
  return (void*)lacking;
}
API CUresult cuGetProcAddress_v2(const char* name, void** f, int, cuuint64_t, CUdriverProcAddressQueryResult* r) {
  *f = entry(name); if (r) *r = CU_GET_PROC_ADDRESS_SUCCESS; return CUDA_SUCCESS;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned, unsigned long long,
                                                 enum cudaDriverEntryPointQueryResult* r) {
  *f = entry(name); if (r) *r = cudaDriverEntryPointSuccess; return cudaSuccess;
}

// ---------------------------------------------------------------- cuBLAS, cuBLASLt: every call is one kernel
struct Blas { cudaStream_t stream; cublasMath_t math; cublasPointerMode_t pointer; };
static int blas(const char* name, cudaStream_t s) {
  Lock lock(mutex); COUNT("cublas calls"); return launch(name, s) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
#define BLAS(name) ANY(name, Blas* handle, ...) { return blas(#name, handle->stream); }
#include "blas.inc"

ANY(cublasCreate_v2, Blas** h) { CALL(); *h = new Blas(); return unsafe("cublasCreate") ? CUBLAS_STATUS_NOT_INITIALIZED : 0; }
ANY(cublasDestroy_v2, Blas* h) { delete h; return 0; }
ANY(cublasSetStream_v2, Blas* h, cudaStream_t s) { h->stream = s; return 0; }
ANY(cublasSetMathMode, Blas* h, cublasMath_t m) { h->math = m; return 0; }
ANY(cublasGetMathMode, Blas* h, cublasMath_t* m) { *m = h->math; return 0; }
ANY(cublasSetPointerMode_v2, Blas* h, cublasPointerMode_t m) { h->pointer = m; return 0; }
ANY(cublasGetPointerMode_v2, Blas* h, cublasPointerMode_t* m) { *m = h->pointer; return 0; }
ZERO(cublasSetWorkspace_v2)

#define DESCRIPTOR(name) \
  ANY(name##Create, void** d, ...) { *d = calloc(1, 512); return 0; } \
  ANY(name##Destroy, void* d) { free(d); return 0; } \
  ZERO(name##SetAttribute)
DESCRIPTOR(cublasLtMatmulDesc) DESCRIPTOR(cublasLtMatmulPreference) DESCRIPTOR(cublasLtMatrixLayout)
API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* result, int* n) {
  memset(result, 0, sizeof *result); *n = 1; return CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t, const void*,
    cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
    const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t s) {
  return (cublasStatus_t)blas("cublasLtMatmul", s);
}

#include "cudnn.inc"
#include "cupti.inc"
