// Compiled by the fuzzing program and, through symbolic links, by the package's tests.

/// A promise of code that reads files, which did not hold.
struct BrokenPromise: Error, CustomStringConvertible {
    let description: String
}
