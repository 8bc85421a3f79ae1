import SequenceParallel
import SparseKernels

/// The attention of every layer over a cache on several ranks. Layers whose queries see the same, by the same softmax, share an
/// operator and its messages.
struct ShardedPlans {
    private struct Key: Hashable {
        let mask: KVMask
        let modifiers: ScoreModifiers
    }

    private let model: LanguageModel
    private let options: SessionOptions
    private var plans: [Key: ShardedPagedAttention] = [:]
    /// Chooses the pages of steps; nil for a method that has none to choose.
    private let selector: ShardedPageSelector?

    /// Every rank calls it.
    init(
        _ model: LanguageModel, _ options: SessionOptions, _ cache: ShardedKVCache
    ) throws(SparseKernelsError) {
        (self.model, self.options) = (model, options)
        let c = model.configuration
        if case .quest(let tokens) = options.decoding {
            // The rule of `QuestDecode`: the last page is always kept, and there is no other minimum.
            selector = try ShardedPageSelector(
                PageSelector(
                    queryHeads: c.queryHeads, configuration: cache.configuration, tokenBudget: tokens, sharing: .kvHead,
                    forcedLast: 1, minimumPages: 1), scope: .allRanks, on: cache.communicator)
        } else {
            selector = nil
        }
        for layer in 0..<c.attentionLayers {
            for isDecoding in [false, true] {
                let key = key(layer: layer, isDecoding: isDecoding)
                if plans[key] != nil { continue }
                plans[key] = try ShardedPagedAttention(
                    queryHeads: c.queryHeads, configuration: cache.configuration, mask: key.mask, modifiers: key.modifiers,
                    on: cache.communicator)
            }
        }
    }

    /// Whether a layer uses the methods of the options.
    func isSparse(_ layer: Int) -> Bool {
        layer >= options.denseLayers && model.configuration.slidingWindows[layer] == nil
    }

    private func key(layer: Int, isDecoding: Bool) -> Key {
        var mask = KVMask.causal
        if let window = model.configuration.slidingWindows[layer] {
            mask = .window(left: window - 1, right: 0)
        } else if isSparse(layer) {
            if isDecoding, case .streaming(let sink, let local) = options.decoding {
                mask = .streaming(sink: sink, window: local)
            } else if !isDecoding, case .streaming(let sink, let local) = options.prefill {
                mask = .streaming(sink: sink, window: local)
            }
        }
        return Key(mask: mask, modifiers: model.modifiers(layer: layer))
    }

    /// The operator of a layer, for steps or for prompts, and what chooses pages for it.
    func plan(layer: Int, isDecoding: Bool) -> (attention: ShardedPagedAttention, selector: ShardedPageSelector?) {
        (plans[key(layer: layer, isDecoding: isDecoding)]!, isDecoding && isSparse(layer) ? selector : nil)
    }
}
