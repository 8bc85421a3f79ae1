#if OpenBLAS && os(Linux)
    internal import COpenBLAS
#endif

/// Dense algebra of the system's OpenBLAS, when the package was built with the trait `OpenBLAS`.
///
/// Benchmarks compare the kernels with it. Nothing in the package needs it. Without the trait `isAvailable` is false.
public enum OpenBLAS {
    #if OpenBLAS && os(Linux)
        public static let isAvailable = true

        /// The version, the build options and the kernel set that OpenBLAS chose for this processor.
        public static var configuration: String {
            "\(String(cString: openblas_get_config())), core \(coreName ?? "")"
        }

        /// The kernel set that OpenBLAS chose for this processor when the process started, such as "Haswell", "Zen", "SkylakeX"
        /// or "Prescott"; nil when OpenBLAS is not built in.
        ///
        /// A processor that is newer than the library may get a kernel set that is years older: OpenBLAS 0.3.21 takes a
        /// fifth-generation Xeon for a Prescott and a Zen 5 for a Haswell, and is slower by up to a factor of six. Set the
        /// environment variable `OPENBLAS_CORETYPE` before the process starts to choose another one (see `Docs/Operators/GEMM.md`).
        public static var coreName: String? { String(cString: openblas_get_corename()) }

        /// C = A·B or A·Bᵀ by `cblas_sgemm`.
        ///
        /// - Parameters: those of `GEMM.run`. `threads` is set for the whole process, because OpenBLAS has only one setting.
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

        /// y = A·x by `cblas_sgemv`, which is a layer without bias for one row.
        ///
        /// - Parameters:
        ///   - a: the matrix.
        ///   - x: as many elements as `a` has columns.
        ///   - y: as many elements as `a` has rows, overwritten.
        ///   - threads: the number of threads, set for the whole process.
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
