public import GoldenReplay
