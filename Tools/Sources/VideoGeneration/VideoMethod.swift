public import SparseKernels
public import SparseKernelsModels
internal import SparseVideoGen

/// The methods of attention that a video can be made with.
public enum VideoMethod: String, Hashable, Sendable, CaseIterable {
    case dense, svg, svg2, xattention, sparge

    /// The name in tables.
    public var title: String {
        switch self {
        case .dense: "dense"
        case .svg: "SVG"
        case .svg2: "SVG2"
        case .xattention: "XAttention"
        case .sparge: "SpargeAttention"
        }
    }
}

/// How much each method keeps, and what stays dense.
public struct VideoMethodOptions: Hashable, Sendable {
    /// SVG: the part of all pairs that the bands keep.
    public var density = 0.4
    /// SVG: query rows on which heads are profiled.
    public var sampledRows = 64
    /// SVG2: the part of the estimated mass.
    public var mass = 0.9
    /// SVG2: the part of the key clusters that every query cluster keeps at least.
    public var minimumKeyRatio = 0.1
    /// SVG2: clusters per head.
    public var queryClusters = 64
    public var keyClusters = 256
    /// XAttention: the part of the estimated mass.
    public var threshold = 0.9
    /// SpargeAttention: the part of the key blocks of a query block.
    public var keepRatio = 0.4
    /// The part of the steps, from the first on, with dense attention.
    public var denseSteps = 0.25
    /// The layers, from the first on, with dense attention in every step.
    public var denseLayers = 1

    public init() {}

    /// The attention of a method, with the dense steps and layers around it.
    /// - Throws: `.invalidArgument` naming the option that is outside its range.
    public func attention(
        _ method: VideoMethod, for configuration: VideoTransformerConfiguration
    ) throws(SparseKernelsError) -> any VideoAttention {
        let sparse: any VideoAttention
        switch method {
        case .dense: return DenseVideoAttention()
        case .xattention: sparse = try XVideoAttention(threshold: threshold)
        case .sparge: sparse = try SpargeVideoAttention(keepRatio: keepRatio)
        case .svg:
            sparse = try SVGVideoAttention(configuration, SVGConfiguration(density: density, sampledRows: sampledRows))
        case .svg2:
            sparse = try SVG2VideoAttention(
                configuration,
                SVG2Configuration(
                    queryClusters: queryClusters, keyClusters: keyClusters, mass: mass, minimumKeyRatio: minimumKeyRatio))
        }
        return try WarmedUpVideoAttention(sparse, denseStepFraction: denseSteps, denseLayers: denseLayers)
    }
}
