"""Networks whose activations are features for Frechet distances: a classifier of MNIST, a ResNet for CIFAR-10."""
