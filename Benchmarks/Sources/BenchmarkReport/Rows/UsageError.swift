/// Something that a user asked for and that does not exist, in a sentence that says what does.
public struct UsageError: Error, CustomStringConvertible, Equatable {
    public let description: String

    public init(_ description: String) { self.description = description }
}
