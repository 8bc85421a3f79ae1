/// The failure of a promise that code for reading files makes.
package struct BrokenPromise: Error, CustomStringConvertible {
    package let description: String
}
