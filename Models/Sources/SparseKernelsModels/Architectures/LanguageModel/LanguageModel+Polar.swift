public import PolarSparsity
public import SparseKernels

extension LanguageModel {
    /// Fits routers that predict which heads of a layer have large outputs, as `DecodingMethod.polar` needs them.
    ///
    /// - Parameters:
    ///   - windows: sequences of tokens, each from position 0 on.
    ///   - byGroup: whether the query heads of a key/value head are selected together.
    ///   - fitting: how routers are fitted.
    ///   - pool: the threads to use.
    /// - Returns: a router per layer with attention.
    /// - Throws: `.invalidArgument` for no tokens; the errors of `logits` and of the fitting.
    /// - Complexity: memory for the inputs of all layers with attention, and the work of `RouterFitting`.
    public func fittedHeadRouters(
        windows: [[Int]], byGroup: Bool = false, _ fitting: RouterFitting, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [HeadRouter] {
        let c = configuration
        var places: [String: (layer: Int, isInput: Bool)] = [:]
        for layer in layers {
            guard case .attention(let mixer) = layer.mixer else { continue }
            places[mixer.qkvNames[0]] = (mixer.index, true)
            places[mixer.outputName] = (mixer.index, false)
        }
        let heads = byGroup ? c.kvHeads : c.queryHeads
        var (inputs, activity) = (
            [[Float]](repeating: [], count: c.attentionLayers), [[Float]](repeating: [], count: c.attentionLayers)
        )
        for window in windows {
            _ = try logits(window, on: pool) { name, rows throws(SparseKernelsError) in
                guard let (layer, isInput) = places[name] else { return }
                if isInput {
                    inputs[layer] += rows.elements
                } else {
                    let geometry = try TensorGeometry(
                        heads: c.queryHeads, tokens: window.count, channels: c.headDim, layout: .nhd, named: "output")
                    activity[layer] += try HeadActivity.norms(
                        of: TensorView(rows.span, geometry: geometry, named: "output"), heads: heads
                    ).elements
                }
            }
        }
        var routers: [HeadRouter] = []
        for layer in 0..<c.attentionLayers {
            let tokens = activity[layer].count / heads
            let (x, y) = (
                try Tensor([tokens, c.hiddenSize], inputs[layer]), try Tensor([tokens, heads], activity[layer])
            )
            routers.append(
                try fitting.headRouter(
                    inputs: x.matrixView(named: "inputs"), activity: y.matrixView(named: "activity"), on: pool))
        }
        return routers
    }

    /// The model with routers of heads, which shares the weights.
    ///
    /// - Parameter headRouters: one per layer with attention, of query heads or of key/value heads.
    /// - Throws: `.invalidShape` for another number of routers, or a router of other heads or features than the model has.
    public func with(headRouters: [HeadRouter]) throws(SparseKernelsError) -> LanguageModel {
        let c = configuration
        guard headRouters.count == c.attentionLayers else {
            throw SparseKernelsError(
                .invalidShape, "headRouters", expected: "\(c.attentionLayers), one per layer with attention",
                actual: "\(headRouters.count)")
        }
        for (layer, router) in headRouters.enumerated() {
            guard router.inFeatures == c.hiddenSize, router.heads == c.queryHeads || router.heads == c.kvHeads else {
                throw SparseKernelsError(
                    .invalidShape, "headRouters[\(layer)]",
                    expected: "\(c.queryHeads) or \(c.kvHeads) heads from \(c.hiddenSize) features",
                    actual: "\(router.heads) from \(router.inFeatures)")
            }
        }
        var model = self
        model.headRouters = headRouters
        return model
    }
}
