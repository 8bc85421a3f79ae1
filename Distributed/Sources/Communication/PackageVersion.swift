/// The version of this package, on which ranks agree before they work on something.
package enum PackageVersion {
    package static let text = "0.1.0"
}
