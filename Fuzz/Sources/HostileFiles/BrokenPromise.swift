/// A promise of code that reads files, which did not hold.
package struct BrokenPromise: Error, CustomStringConvertible {
    package let description: String
}
