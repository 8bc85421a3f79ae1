// The fuzzing program compiles this file, and so do the package's tests, through symbolic links.

/// The failure of a promise that code for reading files makes.
struct BrokenPromise: Error, CustomStringConvertible {
    let description: String
}
