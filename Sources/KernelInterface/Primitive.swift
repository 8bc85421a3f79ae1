/// The elementary functions and conversions that `applyPrimitive` offers to operators and tests.
public enum Primitive: String, Sendable, CaseIterable {
    case exp
    case tanh
    case widenHalf
    case widenBFloat16
    case narrowToHalf
    case narrowToBFloat16
}
