/* A FAKE of NVIDIA's libcudart, and of the one function of libcuda that edgeprune calls. No GPU is used.
 *
 * Host memory replaces device memory. Work on a stream runs at once, or, after fake_defer(1), when the stream is
 * synchronized, which reveals a caller that does not synchronize. Events use a monotonic clock. A captured graph is the
 * list of work that was put on the stream during the capture; a launch puts this list on a stream again.
 *
 * It is as strict as the real library: a copy must lie inside a live allocation of this library, a destroyed handle is
 * refused, and a capture forbids synchronization and allocation. Functions named fake_* are for tests: they provoke
 * errors and count live objects. One thread only.
 *
 * With -DREAL_HEADERS the compiler checks every function below against NVIDIA's declarations.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef REAL_HEADERS
#include <cuda.h>
#include <cuda_runtime_api.h>
#else
typedef int cudaError_t;
typedef int CUresult, CUdevice;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrIntegrated = 18, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76
};
#endif

enum {
    Success = 0, InvalidValue = 1, MemoryAllocation = 2, StubLibrary = 34, InsufficientDriver = 35,
    DevicesUnavailable = 46, NoDevice = 100, InvalidDevice = 101, InvalidResourceHandle = 400, IllegalState = 401, NotReady = 600, IllegalAddress = 700, CaptureUnsupported = 900,
    CaptureInvalidated = 901, CapturedEvent = 907, Unknown = 999
};

static const struct { int code; const char *name, *words; } errors[] = {
    {Success, "cudaSuccess", "no error"},
    {InvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {MemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {StubLibrary, "cudaErrorStubLibrary", "CUDA driver is a stub library"},
    {InsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {DevicesUnavailable, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"},
    {NoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {InvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {InvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {IllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {NotReady, "cudaErrorNotReady", "device not ready"},
    {IllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {CaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {CaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {CapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"},
    {Unknown, "cudaErrorUnknown", "unknown error"},
};

/* ---- live objects ---- */

typedef void (*host_function)(void *);
enum kind { MEMORY, PINNED, STREAM, EVENT, GRAPH, EXECUTABLE, KINDS };
static const char *const kind_names[] = {"memory", "pinned", "streams", "events", "graphs", "executables"};

struct event;
struct work { /* one item: a copy, a call of the test's function, or an event to record */
    void *to;
    const void *from;
    size_t size;
    enum cudaMemcpyKind direction;
    host_function function;
    void *argument;
    struct event *event;
    struct work *next;
};
struct list { struct work *first, *last; };
struct thing { /* the object of a handle; for memory and pinned memory: of a pointer */
    enum kind kind;
    struct thing *next;
    char *memory;
    size_t size;
    struct list work; /* a stream's queue, a graph's nodes */
    struct list captured;
    int capturing; /* 1, or -1 once the capture is invalid */
};
struct event { struct thing thing; double seconds; int captured; };

static struct thing *alive;
static size_t limit = (size_t)1 << 30, used;
static int devices = 1, driver = 12040, last_error, deferred, failure;
static char failing[64];

static int fail(int code) {
    if (code) last_error = code;
    return code;
}

#define CALL(name) do { if (failure && !strcmp(failing, name)) return fail(failure); } while (0)
#define NEED(condition, code) do { if (!(condition)) return fail(code); } while (0)

static struct thing *find(const void *handle, enum kind kind) {
    for (struct thing *t = alive; t; t = t->next)
        if (t->kind == kind && (kind <= PINNED ? (void *)t->memory : (void *)t) == handle) return t;
    return NULL;
}

static void *add(enum kind kind) {
    struct thing *t = calloc(1, sizeof(struct event));
    t->kind = kind;
    t->next = alive;
    alive = t;
    return t;
}

static void clear(struct list *list) {
    for (struct work *w = list->first, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    list->first = list->last = NULL;
}

static void drop(struct thing *t) {
    struct thing **link = &alive;
    while (*link != t) link = &(*link)->next;
    *link = t->next;
    clear(&t->work);
    clear(&t->captured);
    free(t->memory);
    free(t);
}

static int inside_memory(const void *pointer, size_t size) {
    const char *p = pointer;
    for (struct thing *t = alive; t; t = t->next)
        if (t->kind == MEMORY && p >= t->memory && p + size <= t->memory + t->size) return 1;
    return 0;
}

/* ---- work on streams ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void append(struct list *list, struct work work) {
    struct work *copy = malloc(sizeof *copy);
    *copy = work;
    copy->next = NULL;
    if (list->last) list->last->next = copy;
    else list->first = copy;
    list->last = copy;
}

static int copy_is_legal(const struct work *w) {
    return (w->direction == cudaMemcpyDeviceToHost || inside_memory(w->to, w->size)) &&
           (w->direction == cudaMemcpyHostToDevice || inside_memory(w->from, w->size));
}

static int execute(const struct work *w) {
    if (w->function) {
        w->function(w->argument);
    } else if (w->event) {
        if (find(w->event, EVENT)) w->event->seconds = now();
    } else {
        NEED(copy_is_legal(w), IllegalAddress); /* freed after it was put on the stream or recorded */
        memmove(w->to, w->from, w->size);
    }
    return Success;
}

static struct thing default_stream = {.kind = STREAM};

static struct thing *stream_of(cudaStream_t handle) {
    return handle ? find(handle, STREAM) : &default_stream;
}

static int put(cudaStream_t handle, struct work work) {
    struct thing *stream = stream_of(handle);
    NEED(stream, InvalidResourceHandle);
    NEED(stream->capturing >= 0, CaptureInvalidated);
    if (stream->capturing) append(&stream->captured, work);
    else if (deferred) append(&stream->work, work);
    else return execute(&work);
    return Success;
}

static int drain(struct thing *stream) {
    int code = Success;
    struct list todo = stream->work;
    stream->work.first = stream->work.last = NULL;
    for (struct work *w = todo.first; w && !code; w = w->next) code = execute(w);
    clear(&todo);
    return code;
}

static int forbidden_while_capturing(void) { /* allocation and release, which also invalidate the capture */
    int found = 0;
    for (struct thing *t = alive; t; t = t->next)
        if (t->kind == STREAM && t->capturing) t->capturing = -1, found = 1;
    return found;
}

/* ---- for tests ---- */

void fake_fail(const char *function, int code) { /* all later calls fail; code 0: none */
    strncpy(failing, function, sizeof failing - 1);
    failure = code;
}

void fake_limit(size_t size_bytes) { limit = size_bytes; }
void fake_devices(int count) { devices = count; }
void fake_driver(int version) { driver = version; } /* 0: no driver is installed */
void fake_defer(int on) { deferred = on; }
int fake_last_error(void) { return last_error; }

int fake_leave_error(int code) { return fail(code); } /* as a failed function of the runtime API does */

int fake_live(const char *kind) { /* number of live objects; -1: no such kind */
    int count = 0;
    for (int k = 0; k < KINDS; k++)
        if (!strcmp(kind_names[k], kind)) {
            for (struct thing *t = alive; t; t = t->next) count += (int)t->kind == k;
            return count;
        }
    return -1;
}

/* Called by a fake of TensorRT's execute_async_v3. The stream runs it in order; a capture records it. */
int fake_record_host_function(cudaStream_t stream, host_function function, void *argument) {
    return put(stream, (struct work){.function = function, .argument = argument});
}

/* ---- libcudart ---- */

cudaError_t cudaGetLastError(void) {
    int code = last_error;
    last_error = Success;
    return code;
}

const char *cudaGetErrorName(cudaError_t code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == (int)code) return errors[i].name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == (int)code) return errors[i].words;
    return "unrecognized error code";
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    CALL("cudaRuntimeGetVersion");
    *version = 12060;
    return Success;
}

cudaError_t cudaDriverGetVersion(int *version) {
    CALL("cudaDriverGetVersion");
    *version = driver;
    return Success;
}

cudaError_t cudaGetDeviceCount(int *count) {
    CALL("cudaGetDeviceCount");
    NEED(driver, InsufficientDriver);
    NEED(devices, NoDevice);
    *count = devices;
    return Success;
}

cudaError_t cudaSetDevice(int device) {
    CALL("cudaSetDevice");
    NEED(device >= 0 && device < devices, InvalidDevice);
    return Success;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    CALL("cudaDeviceGetAttribute");
    NEED(device >= 0 && device < devices, InvalidDevice);
    switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 8; return Success;
    case cudaDevAttrComputeCapabilityMinor: *value = 7; return Success;
    case cudaDevAttrIntegrated: *value = 1; return Success;
    case cudaDevAttrMultiProcessorCount: *value = 16; return Success;
    }
    return fail(InvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    CALL("cudaMemGetInfo");
    *free_bytes = limit > used ? limit - used : 0;
    *total_bytes = limit;
    return Success;
}

static int allocate(void **pointer, size_t size, enum kind kind) {
    NEED(!forbidden_while_capturing(), CaptureUnsupported);
    NEED(size <= limit && used <= limit - size, MemoryAllocation);
    struct thing *t = add(kind);
    t->size = size;
    t->memory = malloc(size ? size : 1);
    memset(t->memory, 0xA5, size); /* new memory does not contain zeros */
    used += size;
    *pointer = t->memory;
    return Success;
}

static int release(void *pointer, enum kind kind) {
    NEED(!forbidden_while_capturing(), CaptureUnsupported);
    if (!pointer) return Success;
    struct thing *t = find(pointer, kind);
    NEED(t, InvalidValue);
    used -= t->size;
    drop(t);
    return Success;
}

cudaError_t cudaMalloc(void **pointer, size_t size) {
    CALL("cudaMalloc");
    return allocate(pointer, size, MEMORY);
}

cudaError_t cudaFree(void *pointer) {
    CALL("cudaFree");
    return release(pointer, MEMORY);
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned int flags) {
    CALL("cudaHostAlloc");
    NEED(flags <= 7, InvalidValue);
    return allocate(pointer, size, PINNED);
}

cudaError_t cudaFreeHost(void *pointer) {
    CALL("cudaFreeHost");
    return release(pointer, PINNED);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    CALL("cudaMemcpyAsync");
    NEED(kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice,
         InvalidValue);
    struct work work = {.to = to, .from = from, .size = size, .direction = kind};
    NEED(copy_is_legal(&work), InvalidValue);
    return put(stream, work);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    CALL("cudaStreamCreateWithFlags");
    NEED(flags <= 1, InvalidValue);
    *stream = add(STREAM);
    return Success;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    CALL("cudaStreamDestroy");
    struct thing *stream = find(handle, STREAM);
    NEED(stream, InvalidResourceHandle);
    int code = drain(stream);
    drop(stream);
    return code;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    CALL("cudaStreamSynchronize");
    struct thing *stream = stream_of(handle);
    NEED(stream, InvalidResourceHandle);
    if (stream->capturing) {
        stream->capturing = -1;
        return fail(CaptureUnsupported);
    }
    return drain(stream);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    CALL("cudaEventCreate");
    *event = add(EVENT);
    return Success;
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    CALL("cudaEventDestroy");
    struct thing *event = find(handle, EVENT);
    NEED(event, InvalidResourceHandle);
    drop(event);
    return Success;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
    CALL("cudaEventRecord");
    struct event *event = (struct event *)find(handle, EVENT);
    NEED(event && stream_of(stream), InvalidResourceHandle);
    event->seconds = -1; /* pending */
    event->captured = stream_of(stream)->capturing;
    return put(stream, (struct work){.event = event});
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start_handle, cudaEvent_t end_handle) {
    CALL("cudaEventElapsedTime");
    struct event *start = (struct event *)find(start_handle, EVENT), *end = (struct event *)find(end_handle, EVENT);
    NEED(start && end, InvalidResourceHandle);
    NEED(!start->captured && !end->captured, CapturedEvent);
    NEED(start->seconds && end->seconds, InvalidResourceHandle); /* never recorded */
    NEED(start->seconds > 0 && end->seconds > 0, NotReady);
    *milliseconds = (float)(1e3 * (end->seconds - start->seconds));
    return Success;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    CALL("cudaStreamBeginCapture");
    NEED((int)mode >= 0 && (int)mode <= 2, InvalidValue);
    NEED(handle, CaptureUnsupported); /* the default stream cannot be captured */
    struct thing *stream = find(handle, STREAM);
    NEED(stream, InvalidResourceHandle);
    NEED(!stream->capturing, IllegalState);
    stream->capturing = 1;
    return Success;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
    CALL("cudaStreamEndCapture");
    struct thing *stream = find(handle, STREAM);
    NEED(stream, InvalidResourceHandle);
    NEED(stream->capturing, IllegalState);
    int valid = stream->capturing > 0;
    stream->capturing = 0;
    *graph = NULL;
    if (!valid) {
        clear(&stream->captured);
        return fail(CaptureInvalidated);
    }
    struct thing *captured = add(GRAPH);
    captured->work = stream->captured;
    stream->captured.first = stream->captured.last = NULL;
    *graph = (cudaGraph_t)captured;
    return Success;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    CALL("cudaGraphInstantiateWithFlags");
    NEED(flags <= 15, InvalidValue);
    struct thing *source = find(graph, GRAPH);
    NEED(source, InvalidValue);
    struct thing *copy = add(EXECUTABLE);
    for (struct work *w = source->work.first; w; w = w->next) append(&copy->work, *w);
    *executable = (cudaGraphExec_t)copy;
    return Success;
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
    CALL("cudaGraphDestroy");
    struct thing *graph = find(handle, GRAPH);
    NEED(graph, InvalidValue);
    drop(graph);
    return Success;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
    CALL("cudaGraphLaunch");
    struct thing *executable = find(handle, EXECUTABLE);
    NEED(executable, InvalidValue);
    for (struct work *w = executable->work.first; w; w = w->next) {
        int code = put(stream, *w);
        if (code) return code;
    }
    return Success;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    CALL("cudaGraphExecDestroy");
    struct thing *executable = find(handle, EXECUTABLE);
    NEED(executable, InvalidValue);
    drop(executable);
    return Success;
}

/* ---- libcuda ---- */

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    if (failure && !strcmp(failing, "cuDeviceGetName")) return failure;
    if (device < 0 || device >= devices) return InvalidDevice;
    strncpy(name, "Fake Orin", (size_t)length);
    return Success;
}
