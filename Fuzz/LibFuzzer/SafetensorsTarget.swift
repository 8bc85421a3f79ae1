/// Adds valid files to the corpus before it is read. Without them, libFuzzer does not get past the length.
@_cdecl("LLVMFuzzerInitialize")
public func startFuzzing(_ count: UnsafeMutableRawPointer, _ arguments: UnsafeMutableRawPointer) -> CInt {
    for (i, sample) in try! sampleSafetensors().enumerated() {
        try! AtomicFile.replace(".build/corpus/sample-\(i)") { file throws(SparseKernelsError) in
            try file.append(sample.span.bytes)
        }
    }
    return 0
}

/// libFuzzer's entry. libFuzzer changes the input to reach code that no earlier input reached, and reports all traps.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzSafetensors(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    do {
        try readEverything(Array(UnsafeBufferPointer(start: start, count: count)), rewrites: true)
    } catch is SparseKernelsError {
        return 0
    } catch {
        fatalError("\(error)")
    }
    return 0
}
