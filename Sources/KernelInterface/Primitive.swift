/// The elementary functions and conversions that `applyPrimitive` offers to tests.
public enum Primitive: String, Sendable, CaseIterable {
    case exp2
    case tanh
    case widenHalf
    case widenBFloat16
    case narrowToHalf
    case narrowToBFloat16
}
