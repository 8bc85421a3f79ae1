public import SparseKernels

/// The orders of a video's axes, from the slowest to the fastest, with the numbers of the released code.
public enum PAROAxisOrder: Int, Hashable, Sendable, Codable, CaseIterable {
    /// The order in which tokens come.
    case frameHeightWidth
    case frameWidthHeight
    case heightWidthFrame
    case heightFrameWidth
    case widthHeightFrame
    case widthFrameHeight

    public var axes: [VideoAxis] {
        switch self {
        case .frameHeightWidth: [.frame, .height, .width]
        case .frameWidthHeight: [.frame, .width, .height]
        case .heightWidthFrame: [.height, .width, .frame]
        case .heightFrameWidth: [.height, .frame, .width]
        case .widthHeightFrame: [.width, .height, .frame]
        case .widthFrameHeight: [.width, .frame, .height]
        }
    }

    /// The order of tokens of a geometry. Text stays in its place.
    public func permutation(_ geometry: VideoGeometry) -> Permutation {
        // The axes are each there once, which is all that can be wrong.
        try! geometry.axisOrder(axes)
    }

    /// The orders of all heads in one value.
    static func permutation(_ orders: [PAROAxisOrder], _ geometry: VideoGeometry) throws(SparseKernelsError) -> Permutation {
        try Permutation(choosing: orders.map(\.rawValue), from: allCases.map { $0.permutation(geometry) })
    }
}
