public import SparseKernels

/// The parameters of a PS3 encoder, as a checkpoint has them.
public struct PS3Weights: Sendable {
    public typealias Affine = VisionLayerWeights.Affine

    /// The network that makes the features which are compared with the prompt: linear, GELU, LayerNorm, linear.
    public struct Selection: Sendable {
        /// `[layers · width, layers · width]` over the outputs of the selection layers side by side.
        public var first: Affine
        /// `[layers · width]`.
        public var norm: Affine
        /// `[highScales · width, layers · width]`.
        public var second: Affine

        public init(first: Affine, norm: Affine, second: Affine) {
            self.first = first
            self.norm = norm
            self.second = second
        }
    }

    /// The network that sees more detail than the low resolution, and the prompt's projection to its features.
    public struct Detail: Sendable {
        /// A ConvNeXt block: x + gamma · (contract(GELU(expand(LayerNorm(convolution(x)))))).
        public struct Block: Sendable {
            /// `[hidden, 1, k, k]`.
            public var convolution: Affine
            /// `[hidden]`.
            public var norm: Affine
            /// `[4 · hidden, hidden]`.
            public var expansion: Affine
            /// `[hidden, 4 · hidden]`.
            public var contraction: Affine
            /// `[hidden]`; nil means 1.
            public var gamma: Tensor<Float>?

            public init(
                convolution: Affine, norm: Affine, expansion: Affine, contraction: Affine, gamma: Tensor<Float>? = nil
            ) {
                self.convolution = convolution
                self.norm = norm
                self.expansion = expansion
                self.contraction = contraction
                self.gamma = gamma
            }
        }

        /// `[hidden, channels, patch, patch]`, which moves by its own size.
        public var stem: Affine
        /// `[hidden]`.
        public var stemNorm: Affine
        public var blocks: [Block]
        /// `[features, hidden, 1, 1]`, or without the last two axes.
        public var output: Affine
        /// `[highScales · features, width]`.
        public var prompt: Affine

        public init(stem: Affine, stemNorm: Affine, blocks: [Block], output: Affine, prompt: Affine) {
            self.stem = stem
            self.stemNorm = stemNorm
            self.blocks = blocks
            self.output = output
            self.prompt = prompt
        }
    }

    /// `[width, channels, patch, patch]`.
    public var patches: Affine
    /// `[cells, width]`, or with a leading axis of 1: the position table of the low-resolution grid.
    public var positions: Tensor<Float>
    public var layers: [VisionLayerWeights]
    public var selection: Selection
    /// `[width]`: what is looked for when there is no prompt.
    public var prompt: Tensor<Float>
    /// `[cells, width]`, or with a leading axis of 1, of the square grid of each high-resolution scale: added to its positions. Empty
    /// means none.
    public var positionResiduals: [Tensor<Float>]
    /// nil means that the score map has no detail features.
    public var detail: Detail?

    public init(
        patches: Affine, positions: Tensor<Float>, layers: [VisionLayerWeights], selection: Selection, prompt: Tensor<Float>,
        positionResiduals: [Tensor<Float>] = [], detail: Detail? = nil
    ) {
        self.patches = patches
        self.positions = positions
        self.layers = layers
        self.selection = selection
        self.prompt = prompt
        self.positionResiduals = positionResiduals
        self.detail = detail
    }
}

extension PS3Weights {
    /// The parameters in a file, as `F32`, `F16` or `BF16`, under the names of the released checkpoints.
    ///
    /// Layers, residuals of positions and blocks of the detail network are those that the file has, numbered from 0. Without
    /// `highres_selection_feature_module.stem.0.weight` there is no detail network.
    ///
    /// - Parameters:
    ///   - file: the file.
    ///   - prefix: what stands before all names, such as `vision_model.`.
    /// - Throws: `.notFound` and `.invalidElementType`, which name the tensor.
    public init(_ file: SafetensorsFile, prefix: String = "vision_model.") throws(SparseKernelsError) {
        let reader = PS3WeightReader(file: file, prefix: prefix)
        patches = try reader.affine("trunk.patch_embed.proj")
        positions = try reader.tensor("trunk.pos_embed")
        var layers: [VisionLayerWeights] = []
        repeat { layers.append(try reader.layer(layers.count)) } while reader.has("trunk.blocks.\(layers.count).norm1.weight")
        self.layers = layers
        selection = Selection(
            first: try reader.affine("selection_feature_proj.fc1"), norm: try reader.affine("selection_feature_proj.norm"),
            second: try reader.affine("selection_feature_proj.fc2"))
        prompt = try reader.tensor("prior_prompt")
        var residuals: [Tensor<Float>] = []
        while reader.has("pos_emb_residual.\(residuals.count)") {
            residuals.append(try reader.tensor("pos_emb_residual.\(residuals.count)"))
        }
        positionResiduals = residuals
        detail = reader.has("highres_selection_feature_module.stem.0.weight") ? try reader.detail() : nil
    }
}

/// Reads tensors whose names begin with the same words.
private struct PS3WeightReader {
    let file: SafetensorsFile
    let prefix: String

    func has(_ name: String) -> Bool { file[prefix + name] != nil }

    func tensor(_ name: String) throws(SparseKernelsError) -> Tensor<Float> { try file.floatTensor(prefix + name) }

    /// A weight, and a bias if the file has one.
    func affine(_ name: String) throws(SparseKernelsError) -> PS3Weights.Affine {
        PS3Weights.Affine(
            weight: try tensor("\(name).weight"), bias: has("\(name).bias") ? try tensor("\(name).bias") : nil)
    }

    func optional(_ name: String) throws(SparseKernelsError) -> PS3Weights.Affine? {
        has("\(name).weight") ? try affine(name) : nil
    }

    func layer(_ index: Int) throws(SparseKernelsError) -> VisionLayerWeights {
        let path = "trunk.blocks.\(index)"
        return VisionLayerWeights(
            attentionNorm: try affine("\(path).norm1"), queryKeyValue: try affine("\(path).attn.qkv"),
            queryNorm: try optional("\(path).attn.q_norm"), keyNorm: try optional("\(path).attn.k_norm"),
            projection: try affine("\(path).attn.proj"), mlpNorm: try affine("\(path).norm2"),
            up: try affine("\(path).mlp.fc1"), down: try affine("\(path).mlp.fc2"))
    }

    func detail() throws(SparseKernelsError) -> PS3Weights.Detail {
        let path = "highres_selection_feature_module"
        var blocks: [PS3Weights.Detail.Block] = []
        while has("\(path).blocks.\(blocks.count).conv_dw.weight") {
            let block = "\(path).blocks.\(blocks.count)"
            blocks.append(
                PS3Weights.Detail.Block(
                    convolution: try affine("\(block).conv_dw"), norm: try affine("\(block).norm"),
                    expansion: try affine("\(block).mlp.fc1"), contraction: try affine("\(block).mlp.fc2"),
                    gamma: has("\(block).weight") ? try tensor("\(block).weight") : nil))
        }
        return PS3Weights.Detail(
            stem: try affine("\(path).stem.0"), stemNorm: try affine("\(path).stem.1"), blocks: blocks,
            output: try affine("\(path).out_proj"), prompt: try affine("prompt_proj_for_highres"))
    }
}
