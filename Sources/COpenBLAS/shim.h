// OpenBLAS and LAPACKE as the system installs them.
#ifndef SPARSEKERNELS_OPENBLAS_H
#define SPARSEKERNELS_OPENBLAS_H
#include <cblas.h>
#include <lapacke.h>
#endif
