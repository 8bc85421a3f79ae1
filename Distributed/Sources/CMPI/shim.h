// MPI as Swift can see it.
//
// Handles of MPI are pointers in Open MPI and numbers in MPICH, and their constants are macros: of addresses in the one, of casts in
// the other. Swift sees neither. So handles are wrapped in structures, and the few calls that are needed are functions here, which
// are the same for both. They return MPI's error codes, because every communicator that is made here has MPI_ERRORS_RETURN.

#pragma once

#include <mpi.h>
#include <stddef.h>

typedef struct {
    MPI_Comm handle;
} sparse_mpi_comm;

typedef struct {
    MPI_Request handle;
} sparse_mpi_request;

static inline int sparse_mpi_is_initialized(void) {
    int flag = 0;
    MPI_Initialized(&flag);
    return flag;
}

static inline int sparse_mpi_is_finalized(void) {
    int flag = 0;
    MPI_Finalized(&flag);
    return flag;
}

// Starts MPI unless it is running. `level` is what it then allows threads to do.
static inline int sparse_mpi_initialize(int *level) {
    int code = sparse_mpi_is_initialized() ? MPI_Query_thread(level)
                                           : MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, level);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    return code;
}

static inline int sparse_mpi_allows_funnelled(int level) { return level >= MPI_THREAD_FUNNELED; }

static inline int sparse_mpi_finalize(void) { return MPI_Finalize(); }

static inline int sparse_mpi_duplicate_world(sparse_mpi_comm *copy) {
    int code = MPI_Comm_dup(MPI_COMM_WORLD, &copy->handle);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(copy->handle, MPI_ERRORS_RETURN);
    return code;
}

// The communicator of the ranks with a colour; of none for colours below 0.
static inline int sparse_mpi_split(sparse_mpi_comm comm, int colour, int key, sparse_mpi_comm *group) {
    int code = MPI_Comm_split(comm.handle, colour < 0 ? MPI_UNDEFINED : colour, key, &group->handle);
    if (code == MPI_SUCCESS && group->handle != MPI_COMM_NULL)
        code = MPI_Comm_set_errhandler(group->handle, MPI_ERRORS_RETURN);
    return code;
}

static inline int sparse_mpi_free(sparse_mpi_comm *comm) { return MPI_Comm_free(&comm->handle); }

static inline int sparse_mpi_rank(sparse_mpi_comm comm) {
    int rank = -1;
    MPI_Comm_rank(comm.handle, &rank);
    return rank;
}

static inline int sparse_mpi_size(sparse_mpi_comm comm) {
    int size = 0;
    MPI_Comm_size(comm.handle, &size);
    return size;
}

// The highest tag.
static inline int sparse_mpi_tags(void) {
    int *value = NULL, found = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &value, &found);
    return found ? *value : 32767;
}

static inline int sparse_mpi_send(
    sparse_mpi_comm comm, const void *bytes, int count, int peer, int tag, sparse_mpi_request *request) {
    return MPI_Isend(bytes, count, MPI_BYTE, peer, tag, comm.handle, &request->handle);
}

static inline int sparse_mpi_receive(
    sparse_mpi_comm comm, void *bytes, int count, int peer, int tag, sparse_mpi_request *request) {
    return MPI_Irecv(bytes, count, MPI_BYTE, peer, tag, comm.handle, &request->handle);
}

// Whether a transfer has finished, and how many bytes came if it is one that receives.
static inline int sparse_mpi_test(sparse_mpi_request *request, int *finished, int *count) {
    MPI_Status status;
    int code = MPI_Test(&request->handle, finished, &status);
    if (code == MPI_SUCCESS && *finished) code = MPI_Get_count(&status, MPI_BYTE, count);
    return code;
}

// Whether a message of any rank has come, of which rank, and how long it is.
static inline int sparse_mpi_probe(sparse_mpi_comm comm, int tag, int *found, int *source, int *count) {
    MPI_Status status;
    int code = MPI_Iprobe(MPI_ANY_SOURCE, tag, comm.handle, found, &status);
    if (code == MPI_SUCCESS && *found) {
        *source = status.MPI_SOURCE;
        code = MPI_Get_count(&status, MPI_BYTE, count);
    }
    return code;
}

// Receives a message that a probe has found.
static inline int sparse_mpi_take(sparse_mpi_comm comm, void *bytes, int count, int source, int tag) {
    return MPI_Recv(bytes, count, MPI_BYTE, source, tag, comm.handle, MPI_STATUS_IGNORE);
}

static inline int sparse_mpi_is_truncation(int code) {
    int kind = MPI_SUCCESS;
    MPI_Error_class(code, &kind);
    return kind == MPI_ERR_TRUNCATE;
}

// Bytes that the texts below need.
static inline int sparse_mpi_text_size(void) {
    return MPI_MAX_ERROR_STRING > MPI_MAX_LIBRARY_VERSION_STRING ? MPI_MAX_ERROR_STRING : MPI_MAX_LIBRARY_VERSION_STRING;
}

static inline void sparse_mpi_error_text(int code, char *text) {
    int length = 0;
    text[0] = 0;
    MPI_Error_string(code, text, &length);
}

static inline void sparse_mpi_library_text(char *text) {
    int length = 0;
    text[0] = 0;
    MPI_Get_library_version(text, &length);
}
