/// The order in which a recurrence takes the tokens of a sequence.
public enum RecurrenceDirection: String, Hashable, Sendable, CaseIterable {
    /// From the first token to the last.
    case forward
    /// From the last token to the first: as if each sequence were reversed before, and its result after. What came before a
    /// sequence, in its state, is then what follows it.
    case backward
}
