/// A user's request for something that does not exist, with a description that lists what exists.
public struct UsageError: Error, CustomStringConvertible, Equatable {
    public let description: String

    public init(_ description: String) { self.description = description }
}
