package import KernelInterface

/// One kind of data that a cache stores per page, layer and head. See Docs/Layouts/KVPages.md.
package struct KVSection: Hashable, Sendable {
    package enum Kind: String, Sendable, CaseIterable {
        case keys, keyScales, keyOffsets, values, valueScales, valueOffsets, metadata, metadataScales, metadataOffsets
        case estimates, estimateScales, estimateOffsets
    }

    package let kind: Kind
    package let bytesPerPage: Int

    /// The sections of a configuration, in a fixed order.
    package static func all(_ configuration: KVCacheConfiguration) -> [KVSection] {
        let (size, logical) = (configuration.pageSize, configuration.logicalPages)
        var sections: [KVSection] = []
        func add(_ format: KVFormat, rows: Int, bytes: Int, _ kinds: (Kind, Kind, Kind)) {
            sections.append(KVSection(kind: kinds.0, bytesPerPage: bytes))
            if format.isQuantized {
                sections.append(KVSection(kind: kinds.1, bytesPerPage: 2 * rows))
                sections.append(KVSection(kind: kinds.2, bytesPerPage: 2 * rows))
            }
        }
        func keyBytes(_ format: KVFormat, _ channels: Int, _ rows: Int) -> Int {
            TokenLayout.keyStride(format.kernelFormat, channels: channels) * rows
        }
        let (keys, values) = (configuration.keyFormat, configuration.valueFormat)
        add(
            keys, rows: size, bytes: keyBytes(keys, configuration.headDim, size), (.keys, .keyScales, .keyOffsets))
        let valueBytes = TokenLayout.valueBytes(values.kernelFormat, channels: configuration.valueDim, slots: size)
        add(values, rows: size, bytes: valueBytes, (.values, .valueScales, .valueOffsets))
        if let metadata = configuration.metadata {
            add(
                metadata.format, rows: logical, bytes: keyBytes(metadata.format, configuration.metadataChannels, logical),
                (.metadata, .metadataScales, .metadataOffsets))
        }
        if configuration.keepsKeyEstimates {
            add(
                .int4, rows: size, bytes: keyBytes(.int4, configuration.headDim, size),
                (.estimates, .estimateScales, .estimateOffsets))
        }
        return sections
    }
}

/// The memory of a cache: one array over the slots of the pool for every section, layer and head.
///
/// Pages of a head that are adjacent in the pool are adjacent in memory. This type knows slots and pages, but not their owners.
package final class KVStorage {
    package let configuration: KVCacheConfiguration
    package let kernels: any KernelTable.Type
    /// The sections that exist, in the order of their memory.
    package let sections: [KVSection]
    private let memory: [KVSection.Kind: UnsafeMutableRawPointer]
    private let headStride: [KVSection.Kind: Int]

    /// - Throws: `.capacityExceeded` when the system refuses the address space.
    package init(_ configuration: KVCacheConfiguration, kernels: any KernelTable.Type) throws(SparseKernelsError) {
        self.configuration = configuration
        self.kernels = kernels
        sections = KVSection.all(configuration)
        var memory: [KVSection.Kind: UnsafeMutableRawPointer] = [:]
        var headStride: [KVSection.Kind: Int] = [:]
        for section in sections {
            // Whole cache lines, and the bytes that vector loads may read past the end.
            let bytes = (section.bytesPerPage * configuration.pageCapacity + TokenLayout.slack + 63) / 64 * 64
            headStride[section.kind] = bytes
            memory[section.kind] = LazyMemory.allocate(byteCount: bytes * configuration.layers * configuration.kvHeads)
        }
        self.memory = memory
        self.headStride = headStride
        try require(
            memory.count == sections.count, .capacityExceeded, "pageCapacity",
            expected: "so many that the system reserves them",
            actual: "\(configuration.pageCapacity) pages of \(configuration.bytesPerPage) bytes")
    }

    deinit {
        for (kind, pointer) in memory {
            LazyMemory.deallocate(
                pointer, byteCount: headStride[kind]! * configuration.layers * configuration.kvHeads)
        }
    }

    /// The memory of one page of a section.
    package func page(_ page: Int, of section: KVSection, layer: Int, head: Int) -> UnsafeMutableRawPointer {
        base(section.kind, layer: layer, head: head)! + page * section.bytesPerPage
    }

    private func base(_ kind: KVSection.Kind, layer: Int, head: Int) -> UnsafeMutableRawPointer? {
        guard let pointer = memory[kind] else { return nil }
        return pointer + (layer * configuration.kvHeads + head) * headStride[kind]!
    }

    private func halves(_ kind: KVSection.Kind, layer: Int, head: Int) -> UnsafeMutablePointer<UInt16>? {
        base(kind, layer: layer, head: head)?.assumingMemoryBound(to: UInt16.self)
    }

    // MARK: - Operands of kernels

    package func keyOperand(layer: Int, head: Int) -> TokenOperand {
        rowOperand(
            configuration.keyFormat, configuration.headDim, (.keys, .keyScales, .keyOffsets), layer: layer, head: head,
            quantization: configuration.quantization)!
    }

    package func valueOperand(layer: Int, head: Int) -> TokenOperand {
        let format = configuration.valueFormat.kernelFormat
        return TokenOperand(
            base: base(.values, layer: layer, head: head)!, format: format, channels: configuration.valueDim, isValue: true,
            scales: halves(.valueScales, layer: layer, head: head), offsets: halves(.valueOffsets, layer: layer, head: head),
            offsetKind: configuration.quantization.offsetKind)
    }

    /// One row per logical page: row p · logicalPages + i is part i of page p. Nil without metadata.
    package func metadataOperand(layer: Int, head: Int) -> TokenOperand? {
        guard let metadata = configuration.metadata else { return nil }
        return rowOperand(
            metadata.format, configuration.metadataChannels, (.metadata, .metadataScales, .metadataOffsets), layer: layer,
            head: head, quantization: .minimum)
    }

    /// The INT4 keys from which scores are estimated: a copy, or the keys themselves. Nil when there are neither.
    package func estimateOperand(layer: Int, head: Int) -> TokenOperand? {
        if configuration.keyFormat == .int4 { return keyOperand(layer: layer, head: head) }
        return rowOperand(
            .int4, configuration.headDim, (.estimates, .estimateScales, .estimateOffsets), layer: layer, head: head,
            quantization: configuration.quantization)
    }

    private func rowOperand(
        _ format: KVFormat, _ channels: Int, _ kinds: (KVSection.Kind, KVSection.Kind, KVSection.Kind), layer: Int, head: Int,
        quantization: KVQuantization
    ) -> TokenOperand? {
        guard let rows = base(kinds.0, layer: layer, head: head) else { return nil }
        return TokenOperand(
            base: rows, format: format.kernelFormat, channels: channels, isValue: false,
            scales: halves(kinds.1, layer: layer, head: head), offsets: halves(kinds.2, layer: layer, head: head),
            offsetKind: quantization.offsetKind)
    }

    // MARK: - Tokens

    /// Bytes of scratch, 64-byte aligned, that `write` and `summarise` need.
    package static func scratchByteCount(_ configuration: KVCacheConfiguration) -> Int {
        4 * 4 * TokenLayout.padded(max(configuration.headDim, configuration.valueDim))
    }

    /// Stores keys, values and the estimates, if the cache has them, in adjacent slots of one page.
    package func write(
        layer: Int, head: Int, slot: Int, count: Int, key: RowOperand, firstKey: Int, value: RowOperand, firstValue: Int,
        scratch: UnsafeMutableRawPointer
    ) {
        let floats = scratch.assumingMemoryBound(to: Float.self)
        var keys = StoreTokensArguments(
            rows: key, first: firstKey, count: count, target: keyOperand(layer: layer, head: head), slot: slot,
            scratch: floats)
        keys.fitsCodes = configuration.quantization == .leastSquares
        kernels.storeTokens(&keys)
        if configuration.keepsKeyEstimates {
            keys.target = estimateOperand(layer: layer, head: head)!
            kernels.storeTokens(&keys)
        }
        var values = StoreTokensArguments(
            rows: value, first: firstValue, count: count, target: valueOperand(layer: layer, head: head), slot: slot,
            scratch: floats)
        kernels.storeTokens(&values)
    }

    /// Recomputes the metadata of the logical pages that `tokens` (offsets inside the page) touch, from the first `filled`
    /// tokens of the page. Does nothing without metadata.
    ///
    /// With `appends`, the metadata describe the tokens before `tokens`, and extremes are only extended: rounding outwards
    /// commutes with taking the larger of two numbers, so that the bits are the same.
    package func summarise(
        layer: Int, head: Int, page: Int, tokens: Range<Int>, filled: Int, appends: Bool = false,
        scratch: UnsafeMutableRawPointer
    ) {
        guard let metadata = configuration.metadata, let target = metadataOperand(layer: layer, head: head) else { return }
        let size = metadata.logicalPageSize
        var part = tokens.lowerBound / size
        while part * size < min(tokens.upperBound, filled) {
            let extends = appends && metadata.kind == .minMax && !metadata.format.isQuantized && tokens.lowerBound > part * size
            let first = extends ? tokens.lowerBound : part * size
            var arguments = SummarizeTokensArguments(
                key: keyOperand(layer: layer, head: head), slot: page * configuration.pageSize + first,
                count: min((part + 1) * size, filled) - first, isMean: metadata.kind == .mean, target: target,
                row: page * configuration.logicalPages + part, scratch: scratch.assumingMemoryBound(to: Float.self))
            arguments.extendsRow = extends
            kernels.summarizeTokens(&arguments)
            part += 1
        }
    }

    /// Copies a page in every section, layer and head.
    package func copyPage(from source: Int, to target: Int) {
        for section in sections {
            for layer in 0..<configuration.layers {
                for head in 0..<configuration.kvHeads {
                    page(target, of: section, layer: layer, head: head).copyMemory(
                        from: page(source, of: section, layer: layer, head: head), byteCount: section.bytesPerPage)
                }
            }
        }
    }

    /// Reads tokens of adjacent slots as adjacent rows of floats; nil skips keys or values.
    package func read(
        layer: Int, head: Int, slot: Int, count: Int, keys: UnsafeMutablePointer<Float>?, values: UnsafeMutablePointer<Float>?
    ) {
        if let keys { kernels.loadTokens(keyOperand(layer: layer, head: head), slot: slot, count: count, into: keys) }
        if let values { kernels.loadTokens(valueOperand(layer: layer, head: head), slot: slot, count: count, into: values) }
    }
}
