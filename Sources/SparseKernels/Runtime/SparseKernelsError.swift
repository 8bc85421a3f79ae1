/// The failure of an argument, a file or the environment: which one, what was expected, and what was found.
///
/// Everything that a user, a file or a configuration can get wrong is reported this way, before anything is written. Misuse
/// that can only be a programming error traps instead.
public struct SparseKernelsError: Error, Hashable, Sendable {
    /// The kind of failure. More kinds may be added, so a `switch` needs a default.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        public let description: String

        private init(_ description: String) { self.description = description }

        /// Extents disagree with each other, are zero where they must not be, or overflow.
        public static let invalidShape = Code("invalid shape")
        /// Strides overlap rows, leave the memory or are not supported by the kernel.
        public static let invalidStride = Code("invalid stride")
        /// A scalar option is out of range.
        public static let invalidArgument = Code("invalid argument")
        /// The element type is not the one asked for, or no kernel takes it.
        public static let invalidElementType = Code("invalid element type")
        /// The instruction set is unknown, or this machine does not have it.
        public static let unsupportedInstructionSet = Code("unsupported instruction set")
        /// A file's contents break its format.
        public static let malformedFile = Code("malformed file")
        /// Elements in a file are at addresses from which their type cannot be read in place. A copy can be made.
        public static let misalignedData = Code("misaligned data")
        /// A name is not in a file, or tokens were discarded from a cache.
        public static let notFound = Code("not found")
        /// A pool of fixed size has too few pages left, or the system refused the address space of a pool.
        public static let capacityExceeded = Code("capacity exceeded")
        /// A sequence of a cache was freed, or never existed.
        public static let unknownSequence = Code("unknown sequence")
        /// The operating system refused an operation on a file.
        public static let inputOutput = Code("input/output failure")
        /// A process that works on the same task did not answer, died, or disagrees about what is being done.
        public static let communication = Code("communication failure")
    }

    public let code: Code
    /// The argument, file or variable that is wrong.
    public let argument: String
    /// The rule that it broke, with the numbers of the rule.
    public let expected: String
    /// The value that was found instead.
    public let actual: String

    public init(_ code: Code, _ argument: String, expected: String, actual: String) {
        self.code = code
        self.argument = argument
        self.expected = expected
        self.actual = actual
    }
}

extension SparseKernelsError: CustomStringConvertible {
    public var description: String { "\(code): \(argument) must be \(expected), got \(actual)" }
}

/// Throws unless `condition` holds.
package func require(
    _ condition: Bool, _ code: SparseKernelsError.Code, _ argument: @autoclosure () -> String,
    expected: @autoclosure () -> String, actual: @autoclosure () -> String
) throws(SparseKernelsError) {
    if !condition { throw SparseKernelsError(code, argument(), expected: expected(), actual: actual()) }
}
