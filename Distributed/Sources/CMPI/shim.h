// MPI as Swift can see it. Handle constants of MPI are macros: of addresses in Open MPI, of numbers in MPICH. Functions return them.

#pragma once

#include <mpi.h>

static inline MPI_Comm sparse_mpi_world(void) { return MPI_COMM_WORLD; }
