//! Plays the kubelet and the network plugins for the Pods of one namespace.
