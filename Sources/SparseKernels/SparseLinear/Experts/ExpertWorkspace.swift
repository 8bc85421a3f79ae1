internal import KernelInterface

/// Some rows of one expert, and the tasks that multiply them.
struct ExpertRows {
    /// 1 for shared experts, else 0.
    var bank: Int
    var expert: Int
    /// The first row among those of the bank, and their number.
    var row: Int
    var rows: Int
    /// Rows per task of gate and up, and of down.
    var inRows: Int
    var outRows: Int
    /// The first task of gate and up, and of down.
    var firstIn: Int
    var firstOut: Int
}

/// The memory of the experts of one bank in a call.
struct BankMemory {
    let products: UnsafePointer<PanelProduct>
    let coders: UnsafePointer<ActivationCoder>
    let input: ActivationStorage
    let hidden: ActivationStorage
    let codesHidden: Bool
    let hiddenStride: Int
    let outputStride: Int
    /// Rows of all experts together.
    let rows: Int
    /// Inputs, and later outputs; hidden floats; codes of hidden rows.
    let ends: UnsafeMutableRawPointer
    let floats: UnsafeMutablePointer<Float>
    let codes: UnsafeMutableRawPointer

    init(_ bank: ExpertBank, rows: Int, at base: UnsafeMutableRawPointer) {
        products = bank.products
        coders = bank.coders
        input = bank.input
        hidden = bank.hidden
        codesHidden = bank.codesHidden
        hiddenStride = bank.hiddenStride
        outputStride = bank.outputStride
        self.rows = rows
        let bytes = bank.byteCounts(rows: rows)
        ends = base
        let middle = base + bytes.ends
        floats = middle.assumingMemoryBound(to: Float.self)
        codes = middle + (bank.codesHidden ? bytes.hidden : 0)
    }

    func inputs(from row: Int) -> ActivationRows { input.rows(from: row, of: rows, at: ends) }
    /// What the down-projection reads.
    func hidden(from row: Int) -> ActivationRows { hidden.rows(from: row, of: rows, at: codes) }
    var outputs: UnsafeMutablePointer<Float> { ends.assumingMemoryBound(to: Float.self) }
}

/// Where everything of a pass lies in the workspace: the activations of both banks, the list of experts with tokens, and the sorted
/// slots where those of the routing are of more tokens.
struct ExpertWorkspace {
    let tokens: Int
    let slots: Int
    private let experts: Int
    private let routedBytes: Int
    private let sharedBytes: Int
    private let listBytes: Int
    private let sortBytes: Int

    init(_ layer: ExpertLayer, tokens: Int, slots: Int, sortsAgain: Bool) {
        self.tokens = tokens
        self.slots = slots
        experts = layer.routed.experts.count
        let sharedCount = layer.shared?.experts.count ?? 0
        routedBytes = Self.bytes(layer.routed, rows: tokens * slots)
        if let shared = layer.shared { sharedBytes = Self.bytes(shared, rows: tokens * sharedCount) } else { sharedBytes = 0 }
        listBytes = ((experts + sharedCount) * MemoryLayout<ExpertRows>.stride + 63) / 64 * 64
        sortBytes = sortsAgain ? (2 * tokens * slots + 2 * experts + 1) * 4 : 0
    }

    private static func bytes(_ bank: ExpertBank, rows: Int) -> Int {
        let bytes = bank.byteCounts(rows: rows)
        return bytes.ends + bytes.hidden + bytes.codes
    }

    var byteCount: Int { routedBytes + sharedBytes + listBytes + sortBytes }

    func shared(_ base: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer { base + routedBytes }

    func list(_ base: UnsafeMutableRawPointer) -> UnsafeMutablePointer<ExpertRows> {
        (base + routedBytes + sharedBytes).assumingMemoryBound(to: ExpertRows.self)
    }

    /// The slots of a pass sorted by expert, [tokens · slots]; their places follow, then counts and offsets of the experts.
    func sorted(_ base: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Int32> {
        (base + routedBytes + sharedBytes + listBytes).assumingMemoryBound(to: Int32.self)
    }
}
