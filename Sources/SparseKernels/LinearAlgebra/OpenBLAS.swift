#if OpenBLAS && os(Linux)
    internal import COpenBLAS
#endif

/// Dense algebra through the system's OpenBLAS, when the package was built with the trait `OpenBLAS`.
///
/// Benchmarks measure the kernels against it. Nothing in the package needs it: without the trait `isAvailable` is false.
public enum OpenBLAS {
    #if OpenBLAS && os(Linux)
        public static let isAvailable = true

        /// Version, build options and the kernel set it chose for this processor.
        public static var configuration: String {
            "\(String(cString: openblas_get_config())), core \(coreName ?? "")"
        }

        /// The kernel set that OpenBLAS chose for this processor when the process started: "Haswell", "Zen", "SkylakeX", "Prescott" …;
        /// nil when it is not built in.
        ///
        /// A processor that is newer than the library may get one that is years older: OpenBLAS 0.3.21 takes a fifth-generation Xeon for a
        /// Prescott and a Zen 5 for a Haswell, and is slower by up to a factor of six. The environment variable `OPENBLAS_CORETYPE`,
        /// set before the process starts, names another (see `Docs/GEMM.md`).
        public static var coreName: String? { String(cString: openblas_get_corename()) }

        /// C = A·B or A·Bᵀ through `cblas_sgemm`.
        ///
        /// - Parameters: as `GEMM.run`; `threads` is set for the whole process, as OpenBLAS has it.
        /// - Throws: `.invalidShape` naming the operand that disagrees or has no elements.
        public static func multiply(
            a: MatrixView<Float>, b: MatrixView<Float>, c: consuming MutableMatrixView<Float>, transposesB: Bool = false,
            threads: Int = 1
        ) throws(SparseKernelsError) {
            let (n, k) = transposesB ? (b.rows, b.columns) : (b.columns, b.rows)
            try a.requireElements(named: "a")
            try b.requireElements(named: "b")
            try require(
                a.columns == k, .invalidShape, "b",
                expected: "of \(a.columns) \(transposesB ? "columns" : "rows"), as a has columns",
                actual: "of \(k)")
            try require(
                c.rows == a.rows && c.columns == n, .invalidShape, "c", expected: "\(a.rows) × \(n)",
                actual: "\(c.rows) × \(c.columns)")
            openblas_set_num_threads(Int32(threads))
            let (rows, stride) = (a.rows, c.rowStride)
            let target = c.span.withUnsafeMutableBufferPointer { $0.baseAddress! }
            a.span.withUnsafeBufferPointer { left in
                b.span.withUnsafeBufferPointer { right in
                    cblas_sgemm(
                        CblasRowMajor, CblasNoTrans, transposesB ? CblasTrans : CblasNoTrans, blasint(rows), blasint(n),
                        blasint(k), 1, left.baseAddress, blasint(a.rowStride), right.baseAddress, blasint(b.rowStride), 0,
                        target, blasint(stride))
                }
            }
        }

        /// y = A·x through `cblas_sgemv`: a layer without bias on one row.
        ///
        /// - Parameters:
        ///   - a: the matrix.
        ///   - x: as many elements as `a` has columns.
        ///   - y: as many elements as `a` has rows, overwritten.
        ///   - threads: set for the whole process, as OpenBLAS has it.
        /// - Throws: `.invalidShape` naming the operand that disagrees or has no elements; nothing is written then.
        public static func multiplyVector(
            a: MatrixView<Float>, x: Span<Float>, y: inout MutableSpan<Float>, threads: Int = 1
        ) throws(SparseKernelsError) {
            try a.requireElements(named: "a")
            try require(x.count == a.columns, .invalidShape, "x", expected: "\(a.columns) elements", actual: "\(x.count)")
            try require(y.count == a.rows, .invalidShape, "y", expected: "\(a.rows) elements", actual: "\(y.count)")
            openblas_set_num_threads(Int32(threads))
            let target = y.withUnsafeMutableBufferPointer { $0.baseAddress! }
            a.span.withUnsafeBufferPointer { matrix in
                x.withUnsafeBufferPointer { vector in
                    cblas_sgemv(
                        CblasRowMajor, CblasNoTrans, blasint(a.rows), blasint(a.columns), 1, matrix.baseAddress,
                        blasint(a.rowStride), vector.baseAddress, 1, 0, target, 1)
                }
            }
        }
    #else
        public static let isAvailable = false

        public static var configuration: String { "not built in" }

        /// The kernel set that OpenBLAS chose for this processor; nil, because it is not built in.
        public static var coreName: String? { nil }

        /// Always throws: the package was built without the trait `OpenBLAS`.
        public static func multiply(
            a: MatrixView<Float>, b: MatrixView<Float>, c: consuming MutableMatrixView<Float>, transposesB: Bool = false,
            threads: Int = 1
        ) throws(SparseKernelsError) { throw notBuiltIn }

        /// Always throws: the package was built without the trait `OpenBLAS`.
        public static func multiplyVector(
            a: MatrixView<Float>, x: Span<Float>, y: inout MutableSpan<Float>, threads: Int = 1
        ) throws(SparseKernelsError) { throw notBuiltIn }

        private static let notBuiltIn = SparseKernelsError(
            .invalidArgument, "OpenBLAS", expected: "built in (package trait OpenBLAS)", actual: "not built in")
    #endif
}
