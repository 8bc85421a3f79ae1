public import KernelInterface
// The AVX2 level's kernels: the shared bodies over 256-bit vectors.
@_exported import VectorAVX2

/// The table of this instruction set.
public func avx2Kernels() -> KernelTable {
    KernelTable(
        laneCount: laneCount, panelWidth: panelWidth, tileRows: tileRows,
        weightPanelWidth: weightVectors * laneCount,
        attendBlock: { attendBlock($0) }, multiplyBlock: { multiplyBlock($0) }, multiplyRows: { multiplyRows($0) },
        stageRows: { stage($0, first: $1, count: $2, channels: $3, into: $4) },
        scoreAntidiagonals: { scoreAntidiagonals($0) }, encodeKeyGroups: { encodeKeyGroups($0) },
        sumRows: { sumRows($0, $1, $2, $3, $4, $5) },
        quantizeActivations: { quantizeActivations($0) }, multiplyQuantized: { multiplyQuantized($0) },
        byteZero: byteZero,
        tokens: TokenKernels(
            attend: { attendTokens($0) }, score: { scoreTokens($0) }, merge: { mergeTokens($0) },
            store: { storeTokens($0) }, load: { loadTokens($0, slot: $1, count: $2, into: $3) },
            summarize: { summarizeTokens($0) }, prune: { pruneWeights($0) }),
        codeProductChains: { codeProductChains($0) },
        multiplyAddChains: { multiplyAddChains($0, $1) }, readAll: { readAll($0, $1) },
        multiplyTile: { multiplyTile($0, $1, $2, $3, $4) },
        applyPrimitive: { applyPrimitive($0, $1, $2, $3) })
}
