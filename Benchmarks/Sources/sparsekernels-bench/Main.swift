import ArgumentParser

@main
struct SparseKernelsBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sparsekernels-bench",
        abstract: "Measures the kernels of SparseKernels and checks every result it times.",
        version: "0.1.0")

    func run() {
        print(Self.configuration.version)
    }
}
