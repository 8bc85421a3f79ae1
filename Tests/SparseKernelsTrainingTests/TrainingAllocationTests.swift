#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import SparseKernelsTraining
    import Synchronization
    import TestSupport
    import Testing

    /// Gradients and steps allocate nothing on the heap once the pool has its scratch.
    @Suite("Allocations of training")
    struct TrainingAllocationTests {
        @Test("calls allocate nothing after the first ones")
        func calls() async {
            await #expect(processExitsWith: .success) {
                let x = try Tensor<Float>.normal([300, 160], seed: 1)
                let dy = try Tensor<Float>.normal([300, 120], seed: 2)
                let weight = try Tensor<Float>.normal([160], seed: 3)
                let logits = try Tensor<Float>.normal([300, 700], seed: 4)
                let targets = (0..<300).map { $0 }
                let factors = try LoRAFactors(inFeatures: 160, outFeatures: 120, rank: 12, alpha: 12, seed: 5)
                var (dx, dUp) = (try Tensor<Float>(zeros: [300, 160]), try Tensor<Float>(zeros: [300, 160]))
                var (y, t) = (try Tensor<Float>(zeros: [300, 120]), try Tensor<Float>(zeros: [300, 12]))
                var (da, db) = (try Tensor<Float>(zeros: [12, 160]), try Tensor<Float>(zeros: [120, 12]))
                var (dw, dW) = (try Tensor<Float>(zeros: [160]), try Tensor<Float>(zeros: [120, 160]))
                var (bias, dLogits) = (try Tensor<Float>(zeros: [120]), try Tensor<Float>(zeros: [300, 700]))
                var parameter = x
                var moments = try AdamW.Moments(of: parameter)
                var gradients = [try Tensor<Float>.normal([300, 160], seed: 6)]
                #expect(AllocationCounter.install() > 0)
                for threads in [1, 3] {
                    let pool = WorkerPool(threads: threads)
                    for set in InstructionSet.available {
                        let activation = try GatedActivationGradient(.silu, instructionSet: set)
                        let norm = try RMSNormGradient(weight: weight, epsilon: 1e-6, instructionSet: set)
                        let entropy = try CrossEntropy(vocabulary: 700, instructionSet: set)
                        let adapter = try LoRAOperator(inFeatures: 160, outFeatures: 120, rank: 12, instructionSet: set)
                        let linear = try LinearGradient(inFeatures: 160, outFeatures: 120, instructionSet: set)
                        let optimizer = try AdamW(instructionSet: set)
                        let scratch = max(
                            entropy.scratchByteCount, max(adapter.scratchByteCount, linear.scratchByteCount))
                        // Calls hold a workspace beside the scratch of their threads.
                        let (meeting, size) = (Meeting(threads: threads), max(scratch, 1 << 22))
                        withExtendedLifetime(meeting) {
                            pool.withWorkspace(byteCount: size) { _ in
                                pool.run(MeetingCall(meeting: meeting), tasks: threads, work: .max, scratchByteCount: size)
                            }
                        }
                        var allocated = 0
                        for call in 0..<12 {
                            func count(_ body: () throws -> Void) rethrows {
                                let before = AllocationCounter.count
                                try body()
                                if call >= 2 { allocated += AllocationCounter.count - before }
                            }
                            try count {
                                try activation.run(
                                    gate: x, up: x, outputGradient: x, gateGradient: &dx, upGradient: &dUp, on: pool)
                            }
                            try count {
                                try norm.run(x: x, outputGradient: x, inputGradient: &dx, weightGradient: &dw, on: pool)
                            }
                            try count { _ = try entropy.run(logits, targets: targets, gradient: &dLogits, on: pool) }
                            try count { try adapter.run(x: x, factors: factors, projected: &t, adding: &y, on: pool) }
                            try count {
                                try adapter.gradient(
                                    x: x, projected: t, factors: factors, outputGradient: dy, a: &da, b: &db, adding: &dx,
                                    on: pool)
                            }
                            try count { try linear.run(x: x, outputGradient: dy, weight: &dW, bias: &bias, on: pool) }
                            try count {
                                try optimizer.step(
                                    &parameter, gradient: x, moments: &moments, learningRate: 1e-3, on: pool)
                            }
                            try count { try GradientNorm.clip(&gradients, to: 1, on: pool) }
                        }
                        #expect(allocated == 0, "\(set), \(threads) threads: \(allocated) allocations in 10 calls")
                    }
                }
            }
        }

        /// A barrier, at which threads wait for each other, so that each has scratch.
        private final class Meeting: Sendable {
            let threads: Int
            let arrived = Atomic<Int>(0)
            init(threads: Int) { self.threads = threads }
        }

        private struct MeetingCall: PoolCall {
            let meeting: Meeting

            func perform(task: Int, scratch: UnsafeMutableRawPointer) {
                meeting.arrived.wrappingAdd(1, ordering: .sequentiallyConsistent)
                let limit = ContinuousClock.now + .seconds(20)
                while meeting.arrived.load(ordering: .sequentiallyConsistent) < meeting.threads
                    && ContinuousClock.now < limit
                {}
            }
        }
    }
#endif
